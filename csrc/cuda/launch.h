#pragma once

#include <cstdint>

// What every launcher of a one-dimensional grid needs.

namespace dsm::cuda {

inline constexpr int threads_per_block = 256;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr unsigned num_blocks(int64_t threads) {
  return static_cast<unsigned>(ceil_div(threads, threads_per_block));
}

/// Whether 16-byte accesses may begin here.
inline bool is_aligned(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % 16 == 0;
}

}  // namespace dsm::cuda
