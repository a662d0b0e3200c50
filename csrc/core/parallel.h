#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace dsm {

/// Calls work(part) for every part in [0, parts), on up to `threads` threads, the caller's among
/// them; which thread takes which part is open. The first exception is thrown again here.
template <class Work>
void for_each_part(int threads, int64_t parts, Work work) {
  std::atomic<int64_t> next{0};
  const auto take_parts = [&] {
    for (int64_t part; (part = next.fetch_add(1, std::memory_order_relaxed)) < parts;) work(part);
  };
  const int64_t helpers = std::min<int64_t>(threads, parts) - 1;
  if (helpers <= 0) {
    take_parts();
    return;
  }
  std::vector<std::exception_ptr> faults(static_cast<size_t>(helpers) + 1);
  const auto guarded = [&](size_t idx) {
    try {
      take_parts();
    } catch (...) {
      faults[idx] = std::current_exception();
      next.store(parts, std::memory_order_relaxed);
    }
  };
  {
    std::vector<std::jthread> pool;
    try {
      for (int64_t i = 0; i < helpers; ++i) pool.emplace_back(guarded, static_cast<size_t>(i) + 1);
    } catch (const std::system_error&) {
      // No more threads are to be had: those that are there take all parts.
    }
    guarded(0);
  }
  for (const std::exception_ptr& fault : faults) {
    if (fault) std::rethrow_exception(fault);
  }
}

/// Where part `part` of `parts` equal parts of n things begins.
inline int64_t part_begin(int64_t n, int64_t parts, int64_t part) {
  return static_cast<int64_t>(static_cast<__int128>(n) * part / parts);
}

}  // namespace dsm
