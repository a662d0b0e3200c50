#include <pybind11/stl/filesystem.h>

#include <array>
#include <memory>
#include <vector>

#include "bindings/core_bindings.h"
#include "bindings/mapped_view.h"
#include "bindings/numpy_arrays.h"
#include "core/indexed_dataset.h"

namespace dsm::bindings {
namespace {

/// NumPy's own dtype objects, looked up once: creating one costs as much as the view. They live as
/// long as the process, like NumPy's.
const py::dtype& numpy_dtype(TokenType type) {
  static const auto* dtypes = new std::array<py::dtype, 9>{
      py::dtype(),
      py::dtype::of<uint8_t>(),
      py::dtype::of<int8_t>(),
      py::dtype::of<int16_t>(),
      py::dtype::of<int32_t>(),
      py::dtype::of<int64_t>(),
      py::dtype::of<double>(),
      py::dtype::of<float>(),
      py::dtype::of<uint16_t>(),
  };
  return (*dtypes)[static_cast<size_t>(type)];
}

py::array document_view(const py::object& self, int64_t idx) {
  const auto& dataset = self.cast<const IndexedDataset&>();
  const DocumentView document = dataset.document(idx);
  return mapped_view(numpy_dtype(dataset.token_type()), {document.length}, document.data, self);
}

py::array sequence_view(const py::object& self, int64_t idx) {
  const auto& dataset = self.cast<const IndexedDataset&>();
  const DocumentView sequence = dataset.sequence(idx);
  return mapped_view(numpy_dtype(dataset.token_type()), {sequence.length}, sequence.data, self);
}

py::tuple copy_of_documents(const IndexedDataset& dataset, const Array<int64_t>& indices) {
  const std::span<const int64_t> wanted = view(indices);
  py::array_t<int64_t> offsets(indices.size() + 1);
  int64_t* offset = offsets.mutable_data();
  std::vector<DocumentView> documents;
  {
    py::gil_scoped_release release;
    documents = dataset.documents(wanted);
    *offset = 0;
    for (const DocumentView& document : documents) {
      offset[1] = offset[0] + document.length;
      ++offset;
    }
  }
  py::array tokens(numpy_dtype(dataset.token_type()), std::array<py::ssize_t, 1>{*offset});
  auto* out = static_cast<std::byte*>(tokens.mutable_data());
  {
    py::gil_scoped_release release;
    copy_documents(documents, token_bytes(dataset.token_type()), out);
  }
  return py::make_tuple(std::move(tokens), std::move(offsets));
}

py::array lengths_copy(const IndexedDataset& dataset) {
  py::array_t<int32_t> lengths(dataset.num_documents());
  const std::span<int32_t> out(lengths.mutable_data(), static_cast<size_t>(lengths.size()));
  {
    const py::gil_scoped_release release;
    dataset.document_lengths(out);
  }
  return lengths;
}

}  // namespace

void bind_datasets(py::module_& module) {
  using Release = py::call_guard<py::gil_scoped_release>;
  py::class_<IndexedDataset, std::shared_ptr<IndexedDataset>>(module, "IndexedDataset")
      .def(py::init<std::filesystem::path>(), py::arg("prefix"))
      .def_property_readonly("num_documents", &IndexedDataset::num_documents)
      .def_property_readonly("num_sequences", &IndexedDataset::num_sequences)
      .def_property_readonly("has_modes", &IndexedDataset::has_modes)
      .def_property_readonly(
          "dtype", [](const IndexedDataset& dataset) { return numpy_dtype(dataset.token_type()); })
      .def("document", &document_view, py::arg("idx"))
      .def("sequence", &sequence_view, py::arg("idx"))
      .def("documents", &copy_of_documents, py::arg("indices").noconvert())
      .def("lengths", &lengths_copy)
      .def("check_tables", &IndexedDataset::check_tables, Release())
      .def("check_token_ids", &IndexedDataset::check_token_ids, py::arg("vocab_size"), Release());
}

}  // namespace dsm::bindings
