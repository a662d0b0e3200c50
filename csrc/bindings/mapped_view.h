#pragma once

#include <pybind11/numpy.h>

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>

// NumPy arrays that show bytes of a mapping. Their base is the object that holds the mapping, so it
// lives as long as any of them does; they are read-only.

namespace dsm::bindings {

namespace py = pybind11;

/// A C-contiguous array; NumPy's own constructor, because pybind11's is three times slower.
inline py::array mapped_view(const py::dtype& dtype, std::initializer_list<Py_intptr_t> shape,
                             const std::byte* data, py::handle owner) {
  using Api = py::detail::npy_api;
  const Api& api = Api::get();
  static const std::byte nothing{};  // NumPy would allocate where there is no address
  const void* address = data == nullptr ? &nothing : data;
  constexpr int read_only = Api::NPY_ARRAY_C_CONTIGUOUS_ | Api::NPY_ARRAY_ALIGNED_;
  auto array = py::reinterpret_steal<py::array>(api.PyArray_NewFromDescr_(
      api.PyArray_Type_, dtype.inc_ref().ptr(), static_cast<int>(shape.size()), shape.begin(),
      nullptr, const_cast<void*>(address), read_only, nullptr));
  if (!array) throw py::error_already_set();
  if (api.PyArray_SetBaseObject_(array.ptr(), owner.inc_ref().ptr()) != 0) {
    throw py::error_already_set();
  }
  return array;
}

}  // namespace dsm::bindings
