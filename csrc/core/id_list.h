#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <utility>

namespace dsm {

/// Ids in a row. Unlike a vector's, its memory is not zeroed first, and a block of fixed size is
/// copied without a call.
class IdList {
 public:
  int64_t size() const { return size_; }
  int32_t back() const { return ids_[static_cast<size_t>(size_) - 1]; }
  std::span<const int32_t> span() const { return {ids_.get(), static_cast<size_t>(size_)}; }

  void append(std::span<const int32_t> ids) {
    reserve(static_cast<int64_t>(ids.size()));
    std::ranges::copy(ids, ids_.get() + size_);
    size_ += static_cast<int64_t>(ids.size());
  }

  /// The first `count` of the block.
  template <size_t n>
  void append_block(const std::array<int32_t, n>& block, int64_t count) {
    reserve(n);
    std::memcpy(ids_.get() + size_, block.data(), sizeof(block));
    size_ += count;
  }

 private:
  void reserve(int64_t added) {
    if (size_ + added <= capacity_) [[likely]] {
      return;
    }
    capacity_ = std::max<int64_t>({2 * capacity_, size_ + added, 1 << 10});
    auto grown = std::make_unique_for_overwrite<int32_t[]>(static_cast<size_t>(capacity_));
    std::copy_n(ids_.get(), size_, grown.get());
    ids_ = std::move(grown);
  }

  std::unique_ptr<int32_t[]> ids_;
  int64_t size_ = 0;
  int64_t capacity_ = 0;
};

}  // namespace dsm
