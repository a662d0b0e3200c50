#pragma once

#include <cstdint>
#include <initializer_list>

namespace dsm {

inline constexpr uint64_t golden_gamma = 0x9E3779B97F4A7C15u;

/// SplitMix64's finalizer: a bijection of 64-bit words whose every output bit depends on every
/// input bit.
constexpr uint64_t mix64(uint64_t z) {
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

/// One key from several words, in order: (seed, epoch, purpose) and the like.
constexpr uint64_t derive_key(std::initializer_list<uint64_t> words) {
  uint64_t key = 0;
  for (const uint64_t word : words) {
    key = mix64((key + golden_gamma) ^ mix64(word + golden_gamma));
  }
  return key;
}

/// SplitMix64. Integer arithmetic only, hence the same stream on every machine.
class RandomStream {
 public:
  explicit constexpr RandomStream(uint64_t key) : state_(key) {}

  constexpr uint64_t next() { return mix64(state_ += golden_gamma); }

  /// Uniform in [0, bound), without bias (Lemire's multiply and reject).
  constexpr uint64_t below(uint64_t bound) {
    unsigned __int128 product = static_cast<unsigned __int128>(next()) * bound;
    if (static_cast<uint64_t>(product) < bound) {
      const uint64_t threshold = -bound % bound;
      while (static_cast<uint64_t>(product) < threshold) {
        product = static_cast<unsigned __int128>(next()) * bound;
      }
    }
    return static_cast<uint64_t>(product >> 64);
  }

 private:
  uint64_t state_;
};

}  // namespace dsm
