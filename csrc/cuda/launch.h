#pragma once

#include <cstdint>

#include "core/kernel_body.h"

// What launchers check.

namespace dsm::cuda {

/// Above what int32 holds, and above the blocks of a grid: a larger one would wrap around
/// unnoticed.
inline constexpr int64_t size_limit = int64_t{1} << 31;

/// Whether there can be such a pack; the grids over its tokens then are within the limit.
constexpr bool is_pack(int64_t num_entries, int64_t num_tokens) {
  return num_entries >= 2 && num_tokens >= 0 && num_tokens < size_limit;
}

/// Whether 16-byte accesses may begin here.
inline bool is_aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

}  // namespace dsm::cuda
