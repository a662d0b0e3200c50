#include <pybind11/stl/filesystem.h>

#include <cstring>
#include <memory>
#include <stdexcept>

#include "bindings/core_bindings.h"
#include "bindings/numpy_arrays.h"
#include "core/indexed_dataset.h"

namespace dsm::bindings {
namespace {

py::dtype numpy_dtype(TokenType type) {
  switch (type) {
    case TokenType::uint8:
      return py::dtype::of<uint8_t>();
    case TokenType::int8:
      return py::dtype::of<int8_t>();
    case TokenType::int16:
      return py::dtype::of<int16_t>();
    case TokenType::int32:
      return py::dtype::of<int32_t>();
    case TokenType::int64:
      return py::dtype::of<int64_t>();
    case TokenType::float64:
      return py::dtype::of<double>();
    case TokenType::float32:
      return py::dtype::of<float>();
    case TokenType::uint16:
      return py::dtype::of<uint16_t>();
  }
  throw std::logic_error("a token type without a NumPy dtype");
}

/// The view's base is the dataset object, so the mapping lives as long as the view does.
py::array document_view(const py::object& self, int64_t idx) {
  const auto& dataset = self.cast<const IndexedDataset&>();
  const DocumentView document = dataset.document(idx);
  py::array array(numpy_dtype(dataset.token_type()), {document.length}, {}, document.data, self);
  make_read_only(array);
  return array;
}

py::array lengths_copy(const IndexedDataset& dataset) {
  py::array_t<int32_t> lengths(dataset.num_documents());
  std::memcpy(lengths.mutable_data(), dataset.lengths(), static_cast<size_t>(lengths.nbytes()));
  return lengths;
}

}  // namespace

void bind_datasets(py::module_& module) {
  py::class_<IndexedDataset, std::shared_ptr<IndexedDataset>>(module, "IndexedDataset")
      .def(py::init<std::filesystem::path>(), py::arg("prefix"))
      .def_property_readonly("num_documents", &IndexedDataset::num_documents)
      .def_property_readonly(
          "dtype", [](const IndexedDataset& dataset) { return numpy_dtype(dataset.token_type()); })
      .def("document", &document_view, py::arg("idx"))
      .def("lengths", &lengths_copy);
}

}  // namespace dsm::bindings
