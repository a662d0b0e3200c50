#pragma once

#include <bit>
#include <cstddef>
#include <cstring>

namespace dsm {

static_assert(std::endian::native == std::endian::little, "the files are read as they lie");

/// The value at `from`, which need not be aligned: the tables of an .idx begin at byte 34.
template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

/// The idx-th value of a table that begins at `table`.
template <class T, class Index>
T load_entry(const std::byte* table, Index idx) {
  return load<T>(table + sizeof(T) * static_cast<size_t>(idx));
}

}  // namespace dsm
