#pragma once

#include <cstdint>

namespace dsm {

/// An unsigned 64-bit count whose sums and products remember that they overflowed: sizes computed
/// from a file's header are untrusted.
class CheckedSize {
 public:
  constexpr CheckedSize(uint64_t value) : value_(value) {}  // NOLINT: counts convert silently

  constexpr bool overflowed() const { return overflowed_; }
  constexpr uint64_t value() const { return value_; }
  constexpr bool equals(uint64_t other) const { return !overflowed_ && value_ == other; }

  friend constexpr CheckedSize operator+(CheckedSize a, CheckedSize b) {
    CheckedSize sum(0);
    sum.overflowed_ =
        __builtin_add_overflow(a.value_, b.value_, &sum.value_) || a.overflowed_ || b.overflowed_;
    return sum;
  }

  friend constexpr CheckedSize operator*(CheckedSize a, CheckedSize b) {
    CheckedSize product(0);
    product.overflowed_ = __builtin_mul_overflow(a.value_, b.value_, &product.value_) ||
                          a.overflowed_ || b.overflowed_;
    return product;
  }

 private:
  uint64_t value_;
  bool overflowed_ = false;
};

}  // namespace dsm
