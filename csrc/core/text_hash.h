#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/random.h"

namespace dsm {

/// The 64-bit hash of a string that comes piece by piece.
class StringHash {
 public:
  explicit constexpr StringHash(uint64_t seed = 0) : state_(mix64(seed + golden_gamma)) {}

  constexpr void add(uint64_t value) { state_ = (state_ ^ value) * 0x9FB21C651E98DF25u; }
  /// Products alone carry nothing downwards; the finalizer does.
  constexpr uint64_t value() const { return mix64(state_); }

 private:
  uint64_t state_;
};

/// Hashes of all runs of a sequence of hashed words: Rabin and Karp's polynomial, modulo 2^64 with
/// an odd base. The words are hashes themselves, so that nothing is left for it to cancel.
class RunHashes {
 public:
  void assign(std::span<const uint64_t> words) {
    prefixes_.resize(words.size() + 1);
    prefixes_[0] = 0;
    for (size_t i = 0; i < words.size(); ++i) prefixes_[i + 1] = prefixes_[i] * base + words[i];
  }

  int64_t size() const { return static_cast<int64_t>(prefixes_.size()) - 1; }

  /// The hash of words [begin, begin + length); `power` is power_of(length).
  uint64_t run(int64_t begin, int64_t length, uint64_t power) const {
    const auto at = static_cast<size_t>(begin);
    return mix64(prefixes_[at + static_cast<size_t>(length)] - prefixes_[at] * power +
                 static_cast<uint64_t>(length) * golden_gamma);
  }
  uint64_t run(int64_t begin, int64_t length) const { return run(begin, length, power_of(length)); }

  static constexpr uint64_t power_of(int64_t length) {
    uint64_t power = 1;
    for (int64_t i = 0; i < length; ++i) power *= base;
    return power;
  }

 private:
  static constexpr uint64_t base = 0xD1342543DE82EF95u;
  std::vector<uint64_t> prefixes_{0};
};

}  // namespace dsm
