#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <span>

#include "core/buffer.h"

// Arrays come in as NumPy arrays of the exact dtype and go out as NumPy arrays that own or keep
// alive what they show.

namespace dsm::bindings {

namespace py = pybind11;

template <class T>
using Array = py::array_t<T, py::array::c_style>;

template <class T>
std::span<const T> view(const Array<T>& array) {
  return {array.data(), static_cast<size_t>(array.size())};
}

template <class T>
std::span<T> mutable_view(Array<T>& array) {
  return {array.mutable_data(), static_cast<size_t>(array.size())};
}

/// The array's address is the buffer's; it is freed with the last array that shows it.
template <class T>
py::array release_to_numpy(Buffer<T> buffer) {
  const int64_t size = buffer.size();
  T* data = buffer.release();
  py::capsule owner(data, [](void* memory) { delete[] static_cast<T*>(memory); });
  return py::array_t<T>(size, data, owner);
}

/// Without it a caller could write into a mapping, or into an index others share.
inline void make_read_only(py::array& array) {
  py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
}

}  // namespace dsm::bindings
