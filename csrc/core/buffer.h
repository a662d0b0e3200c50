#pragma once

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <type_traits>
#include <utility>

#include "core/arena.h"

namespace dsm {

/// An owned array of plain values that is not zeroed first; from an arena where one is given.
template <class T>
class Buffer {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

 public:
  Buffer() = default;
  explicit Buffer(int64_t size, Arena* arena = nullptr)
      : size_(size), block_(allocate_block(static_cast<size_t>(size) * sizeof(T), arena)) {}
  Buffer(Buffer&& other) noexcept
      : size_(std::exchange(other.size_, 0)), block_(std::move(other.block_)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    size_ = std::exchange(other.size_, 0);
    block_ = std::move(other.block_);
    return *this;
  }

  int64_t size() const { return size_; }
  T* data() { return reinterpret_cast<T*>(block_.get()); }
  const T* data() const { return reinterpret_cast<const T*>(block_.get()); }
  T& operator[](int64_t i) { return data()[i]; }
  const T& operator[](int64_t i) const { return data()[i]; }
  std::span<T> span() { return {data(), static_cast<size_t>(size_)}; }
  std::span<const T> span() const { return {data(), static_cast<size_t>(size_)}; }

  /// Forgets the entries behind; the memory stays.
  void shorten(int64_t size) {
    assert(size <= size_);
    size_ = size;
  }

 private:
  int64_t size_ = 0;
  std::shared_ptr<std::byte> block_;
};

}  // namespace dsm
