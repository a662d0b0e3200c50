#pragma once

#include <cstdint>

#include "core/kernel_body.h"

// What every launcher of a one-dimensional grid needs.

namespace dsm::cuda {

constexpr unsigned num_blocks(int64_t threads) {
  return static_cast<unsigned>(ceil_div(threads, threads_per_block));
}

/// Whether 16-byte accesses may begin here.
inline bool is_aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

}  // namespace dsm::cuda
