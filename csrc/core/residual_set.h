#pragma once

#include <bit>
#include <cstdint>
#include <vector>

namespace dsm {

/// A set of integers in [0, limit] that finds its smallest member at or above a bound: a bitmap
/// under bitmaps of its non-zero words, 64 to one.
class ResidualSet {
 public:
  explicit ResidualSet(int64_t limit) {
    uint64_t bits = static_cast<uint64_t>(limit) + 1;
    do {
      bits = (bits + 63) / 64;
      levels_.emplace_back(bits, 0);
    } while (bits > 1);
  }

  void insert(int64_t value) {
    uint64_t bit = static_cast<uint64_t>(value);
    for (auto& words : levels_) {
      words[bit >> 6] |= uint64_t{1} << (bit & 63);
      bit >>= 6;
    }
  }

  void erase(int64_t value) {
    uint64_t bit = static_cast<uint64_t>(value);
    for (auto& words : levels_) {
      words[bit >> 6] &= ~(uint64_t{1} << (bit & 63));
      if (words[bit >> 6] != 0) return;
      bit >>= 6;
    }
  }

  /// The smallest member >= bound, or -1.
  int64_t find_at_least(int64_t bound) const {
    uint64_t bit = static_cast<uint64_t>(bound);
    for (size_t level = 0; level < levels_.size(); ++level) {
      const auto& words = levels_[level];
      if ((bit >> 6) >= words.size()) return -1;
      const uint64_t rest = words[bit >> 6] & (~uint64_t{0} << (bit & 63));
      if (rest != 0) return descend(level, (bit & ~uint64_t{63}) + std::countr_zero(rest));
      bit = (bit >> 6) + 1;
    }
    return -1;
  }

 private:
  int64_t descend(size_t level, uint64_t bit) const {
    while (level > 0) {
      --level;
      bit = (bit << 6) + static_cast<uint64_t>(std::countr_zero(levels_[level][bit]));
    }
    return static_cast<int64_t>(bit);
  }

  std::vector<std::vector<uint64_t>> levels_;
};

}  // namespace dsm
