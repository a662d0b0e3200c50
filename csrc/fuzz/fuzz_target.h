#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <vector>

#include "core/error.h"

// What the targets share. A target parses the bytes, then does whatever a reader may do; the only
// way out of a fault is InputError. A wrong read is the sanitizers' to find.

/// An invariant of the core, checked in all builds.
#define FUZZ_CHECK(condition)                                                      \
  do {                                                                             \
    if (!(condition)) {                                                            \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                \
    }                                                                              \
  } while (false)

namespace dsm::fuzz {

/// A copy of exactly this size on the heap, so that AddressSanitizer sees a read past its end.
inline std::vector<std::byte> exact_copy(const uint8_t* data, size_t size) {
  const auto* bytes = reinterpret_cast<const std::byte*>(data);
  return {bytes, bytes + size};
}

/// Whether the action ended without InputError.
template <class Action>
bool succeeds(const Action& action) {
  try {
    action();
    return true;
  } catch (const InputError&) {
    return false;
  }
}

/// Reads every byte, so that the sanitizers see it.
inline uint64_t sum(std::span<const std::byte> bytes) {
  uint64_t total = 0;
  for (const std::byte byte : bytes) total += std::to_integer<uint64_t>(byte);
  return total;
}

/// Keeps a value that nothing uses from being optimised away.
inline void consume(uint64_t value) { asm volatile("" : : "r"(value) : "memory"); }

}  // namespace dsm::fuzz
