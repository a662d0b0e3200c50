#include "core/dense_mask.h"

#include <cassert>

#include "core/packed_metadata.h"

namespace dsm {

void dense_mask(std::span<const int32_t> cu_seqlens, int64_t num_tokens, std::span<uint8_t> mask) {
  assert(mask.size() == static_cast<size_t>(num_tokens) * static_cast<size_t>(num_tokens));
  check_cu_seqlens(cu_seqlens, num_tokens);
  const int64_t num_entries = static_cast<int64_t>(cu_seqlens.size());
  for (int64_t query = 0; query < num_tokens; ++query) {
    const int64_t document = find_document(cu_seqlens.data(), num_entries, query);
    fill_mask_segment(cu_seqlens[static_cast<size_t>(document)], query, 0, num_tokens,
                      mask.data() + query * num_tokens);
  }
}

}  // namespace dsm
