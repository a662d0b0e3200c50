#pragma once

#include <cstdint>
#include <span>

#include "core/host_device.h"

namespace dsm {

/// The document that holds a token: the last d with cu_seqlens[d] <= token_idx. Entries that repeat
/// the end, as padding, are never chosen for a token before it. num_entries >= 2.
DSM_HOST_DEVICE inline int64_t find_document(const int32_t* cu_seqlens, int64_t num_entries,
                                             int64_t token_idx) {
  int64_t low = 0;                 // cu_seqlens[low] <= token_idx
  int64_t high = num_entries - 1;  // the answer is below high
  while (high - low > 1) {
    const int64_t middle = low + (high - low) / 2;
    if (cu_seqlens[middle] <= token_idx) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

/// Position and document of the tokens [first, first + count), written to position_ids[0 .. count)
/// and document_ids[0 .. count). One search, then a walk.
DSM_HOST_DEVICE inline void fill_packed_metadata(const int32_t* cu_seqlens, int64_t num_entries,
                                                 int64_t first, int64_t count,
                                                 int64_t* position_ids, int32_t* document_ids) {
  int64_t document = find_document(cu_seqlens, num_entries, first);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t token_idx = first + i;
    while (document + 2 < num_entries && cu_seqlens[document + 1] <= token_idx) ++document;
    position_ids[i] = token_idx - cu_seqlens[document];
    document_ids[i] = static_cast<int32_t>(document);
  }
}

/// Throws InputError unless cu_seqlens runs from 0 to num_tokens without falling.
void check_cu_seqlens(std::span<const int32_t> cu_seqlens, int64_t num_tokens);

/// The CPU loop over all tokens. position_ids and document_ids have as many entries as the pack
/// has tokens. Throws as check_cu_seqlens does.
void packed_metadata(std::span<const int32_t> cu_seqlens, std::span<int64_t> position_ids,
                     std::span<int32_t> document_ids);

}  // namespace dsm
