#pragma once

#include <cstdint>

#include "core/host_device.h"

// What the bodies of kernels share. A body is a function of the indices of its block and its
// thread; where threads share memory it is several functions, with a barrier between them.

namespace dsm {

inline constexpr int threads_per_block = 256;

DSM_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// 16 bytes that are loaded or stored at once, over memory of any type.
struct alignas(16) [[gnu::may_alias]] Chunk {
  uint64_t low;
  uint64_t high;
};

/// Stores the values, which stand on 16 bytes, with 16-byte stores; so must `out`.
template <class T, int n>
DSM_HOST_DEVICE inline void store_chunks(T* out, const T (&values)[n]) {
  constexpr int num_bytes = n * static_cast<int>(sizeof(T));
  static_assert(num_bytes % sizeof(Chunk) == 0);
  for (int i = 0; i * static_cast<int>(sizeof(Chunk)) < num_bytes; ++i) {
    reinterpret_cast<Chunk*>(out)[i] = reinterpret_cast<const Chunk*>(values)[i];
  }
}

/// One step of a tree over the partial results of a block: strides halve from threads_per_block / 2
/// to 1, with a barrier before each, and partials[0] holds the whole.
template <class Partial>
DSM_HOST_DEVICE inline void fold(Partial* partials, int stride, int thread_idx) {
  if (thread_idx < stride) partials[thread_idx].take_in(partials[thread_idx + stride]);
}

}  // namespace dsm
