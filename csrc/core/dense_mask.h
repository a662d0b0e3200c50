#pragma once

#include <cstdint>
#include <span>

#include "core/host_device.h"

namespace dsm {

/// Part of one row of the block-diagonal causal mask: whether `query` attends to the keys
/// [first_key, first_key + count), one byte each. A query attends to the keys of its own document,
/// which begins at document_begin, up to itself.
DSM_HOST_DEVICE inline void fill_mask_segment(int64_t document_begin, int64_t query,
                                              int64_t first_key, int64_t count, uint8_t* mask) {
  // One comparison of 32 bits: keys before the document wrap around to large numbers.
  const uint32_t reach = static_cast<uint32_t>(query - document_begin);
  const uint32_t first = static_cast<uint32_t>(first_key - document_begin);
  const uint32_t num_keys = static_cast<uint32_t>(count);
  for (uint32_t i = 0; i < num_keys; ++i) mask[i] = first + i <= reach;
}

/// The CPU loop over all rows; mask has num_tokens * num_tokens bytes, 0 or 1. Throws InputError
/// unless cu_seqlens runs from 0 to num_tokens without falling.
void dense_mask(std::span<const int32_t> cu_seqlens, int64_t num_tokens, std::span<uint8_t> mask);

}  // namespace dsm
