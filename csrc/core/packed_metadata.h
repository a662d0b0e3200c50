#pragma once

#include <cstdint>
#include <span>

#include "core/host_device.h"
#include "core/kernel_body.h"

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

/// The document of a token that is not before the one `document` was found for: a walk.
DSM_HOST_DEVICE inline int64_t advance_document(const int32_t* cu_seqlens, int64_t num_entries,
                                                int64_t document, int64_t token_idx) {
  while (document + 2 < num_entries && cu_seqlens[document + 1] <= token_idx) ++document;
  return document;
}

/// Throws InputError unless cu_seqlens runs from 0 to num_tokens without falling.
void check_cu_seqlens(std::span<const int32_t> cu_seqlens, int64_t num_tokens);

/// Label of a position that is not trained on.
inline constexpr int64_t no_label = -100;

struct PackedMetadataArguments {
  const int32_t* cu_seqlens;  // [num_entries]
  int64_t num_entries;
  int64_t num_tokens;
  const int64_t* tokens;      // [num_tokens], as all below
  const uint8_t* supervised;  // 0 or 1
  int64_t* position_ids;
  int32_t* document_ids;
  int32_t* segment_ends;
  int64_t* labels;
  float* loss_weights;
  int32_t* max_seqlen;  // one
};

struct TokenLabel {
  int64_t id = no_label;
  float loss_weight = 0;
};

/// The label that a token is for the one before it in its document.
DSM_HOST_DEVICE inline TokenLabel label_of(const PackedMetadataArguments& arguments,
                                           int64_t token_idx) {
  const int64_t id = arguments.tokens[token_idx];  // read in any case: the CPU's loop has no branch
  if (arguments.supervised[token_idx] == 0) return {};
  return {id, 1};
}

inline constexpr int metadata_tokens_per_thread = 4;

/// Fills the outputs of 4 tokens: one search, a walk, and 16-byte stores, on which the outputs
/// must stand.
DSM_HOST_DEVICE inline void packed_metadata_body(const PackedMetadataArguments& arguments,
                                                 int64_t block_idx, int thread_idx) {
  constexpr int n = metadata_tokens_per_thread;
  const int64_t first = (block_idx * threads_per_block + thread_idx) * n;
  const int64_t rest = arguments.num_tokens - first;
  if (rest <= 0) return;
  alignas(16) int64_t position_ids[n] = {};
  alignas(16) int32_t document_ids[n] = {};
  alignas(16) int32_t segment_ends[n] = {};
  alignas(16) int64_t labels[n] = {};
  alignas(16) float loss_weights[n] = {};
  int64_t document = find_document(arguments.cu_seqlens, arguments.num_entries, first);
  for (int i = 0; i < n; ++i) {
    if (i >= rest) break;
    const int64_t token_idx = first + i;
    document = advance_document(arguments.cu_seqlens, arguments.num_entries, document, token_idx);
    const int32_t end = arguments.cu_seqlens[document + 1];
    const TokenLabel label =
        token_idx + 1 < end ? label_of(arguments, token_idx + 1) : TokenLabel{};
    position_ids[i] = token_idx - arguments.cu_seqlens[document];
    document_ids[i] = static_cast<int32_t>(document);
    segment_ends[i] = end;
    labels[i] = label.id;
    loss_weights[i] = label.loss_weight;
  }
  if (rest >= n) {
    store_chunks(arguments.position_ids + first, position_ids);
    store_chunks(arguments.document_ids + first, document_ids);
    store_chunks(arguments.segment_ends + first, segment_ends);
    store_chunks(arguments.labels + first, labels);
    store_chunks(arguments.loss_weights + first, loss_weights);
    return;
  }
  for (int i = 0; i < n; ++i) {
    if (i >= rest) break;
    arguments.position_ids[first + i] = position_ids[i];
    arguments.document_ids[first + i] = document_ids[i];
    arguments.segment_ends[first + i] = segment_ends[i];
    arguments.labels[first + i] = labels[i];
    arguments.loss_weights[first + i] = loss_weights[i];
  }
}

constexpr int64_t packed_metadata_blocks(int64_t num_tokens) {
  return ceil_div(num_tokens, threads_per_block * metadata_tokens_per_thread);
}

struct LongestDocument {
  int32_t length;

  DSM_HOST_DEVICE void take_in(LongestDocument other) {
    if (other.length > length) length = other.length;
  }
};

/// The longest of the documents thread_idx, thread_idx + threads_per_block, ...: a block folds
/// them to max_seqlen.
DSM_HOST_DEVICE inline LongestDocument longest_document(const PackedMetadataArguments& arguments,
                                                        int thread_idx) {
  LongestDocument longest{0};
  for (int64_t i = thread_idx; i + 1 < arguments.num_entries; i += threads_per_block) {
    longest.take_in({arguments.cu_seqlens[i + 1] - arguments.cu_seqlens[i]});
  }
  return longest;
}

/// The CPU loop over all documents. Throws as check_cu_seqlens does.
void packed_metadata(const PackedMetadataArguments& arguments);

}  // namespace dsm
