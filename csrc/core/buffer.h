#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <utility>

namespace dsm {

/// An owned array that is not zeroed first: at 100 million documents the first touch of memory
/// costs more than the packing.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size)
      : size_(size), data_(std::make_unique_for_overwrite<T[]>(static_cast<size_t>(size))) {}

  int64_t size() const { return size_; }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }
  T& operator[](int64_t i) { return data_[static_cast<size_t>(i)]; }
  const T& operator[](int64_t i) const { return data_[static_cast<size_t>(i)]; }
  std::span<T> span() { return {data_.get(), static_cast<size_t>(size_)}; }

  /// Gives the array away; the caller deletes it with delete[].
  T* release() {
    size_ = 0;
    return data_.release();
  }

 private:
  int64_t size_ = 0;
  std::unique_ptr<T[]> data_;
};

}  // namespace dsm
