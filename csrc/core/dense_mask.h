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
  for (int64_t i = 0; i < count; ++i) {
    const int64_t key = first_key + i;
    mask[i] = static_cast<uint8_t>((key >= document_begin) & (key <= query));
  }
}

/// The CPU loop over all rows; mask has num_tokens * num_tokens bytes, 0 or 1. Throws InputError
/// unless cu_seqlens runs from 0 to num_tokens without falling.
void dense_mask(std::span<const int32_t> cu_seqlens, int64_t num_tokens, std::span<uint8_t> mask);

}  // namespace dsm
