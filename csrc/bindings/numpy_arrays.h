#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <span>
#include <utility>

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

/// Without it a caller could write into a mapping, or into an index others share.
inline void make_read_only(py::array& array) {
  py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
}

/// The array shows the buffer's memory, which is let go with the last array that does.
template <class T>
py::array release_to_numpy(Buffer<T> buffer) {
  auto* kept = new Buffer<T>(std::move(buffer));
  py::capsule owner(kept, [](void* memory) { delete static_cast<Buffer<T>*>(memory); });
  py::array_t<T> array(kept->size(), kept->data(), owner);
  make_read_only(array);
  return array;
}

}  // namespace dsm::bindings
