#include <pybind11/stl/filesystem.h>

#include <filesystem>
#include <memory>
#include <string_view>

#include "bindings/core_bindings.h"
#include "bindings/mapped_view.h"
#include "bindings/numpy_arrays.h"
#include "core/attribute_table.h"
#include "core/mapped_file.h"
#include "core/span_table.h"

namespace dsm::bindings {
namespace {

/// A mapped file and the view of it; what Python holds.
template <class View>
class Mapped {
 public:
  explicit Mapped(const std::filesystem::path& path)
      : file_(path), view_(View::parse({file_.data(), file_.size()}, path)) {}
  const View& view() const { return view_; }

 private:
  MappedFile file_;
  View view_;
};

using SpanTableFile = Mapped<SpanTableView>;
using AttributeTableFile = Mapped<AttributeTableView>;

py::array span_offsets(const py::object& self) {
  const SpanTableView& table = self.cast<const SpanTableFile&>().view();
  return mapped_view(py::dtype::of<int64_t>(), {table.num_documents() + 1}, table.offsets(), self);
}

py::array all_spans(const py::object& self) {
  const SpanTableView& table = self.cast<const SpanTableFile&>().view();
  return mapped_view(py::dtype::of<int32_t>(), {table.num_spans(), 2}, table.spans(), self);
}

py::array document_spans(const py::object& self, int64_t idx) {
  const SpanTableView& table = self.cast<const SpanTableFile&>().view();
  const auto [first, last] = table.document(idx);
  return mapped_view(py::dtype::of<int32_t>(), {last - first, 2}, table.spans() + 8 * first, self);
}

void check_spans(const SpanTableFile& table, const Array<int32_t>& lengths) {
  const std::span<const int32_t> documents = view(lengths);
  py::gil_scoped_release release;
  table.view().check(documents);
}

py::bytes to_bytes(std::string_view text) { return {text.data(), text.size()}; }

py::tuple document_attributes(const AttributeTableFile& table, int64_t idx) {
  const AttributeRecord record = table.view().document(idx);
  const auto& codes = record.codes;
  return py::make_tuple(to_bytes(record.id), codes[0], codes[1], codes[2], codes[3]);
}

int checked_column(int column) {
  if (column < 0 || column >= num_attribute_columns) throw py::index_error("no such column");
  return column;
}

py::list column_values(const AttributeTableFile& table, int column) {
  const int64_t count = table.view().num_values(checked_column(column));
  py::list values(count);
  for (int64_t i = 0; i < count; ++i) {
    values[static_cast<size_t>(i)] = to_bytes(table.view().value(column, i));
  }
  return values;
}

py::array column_codes(const py::object& self, int column) {
  const AttributeTableView& table = self.cast<const AttributeTableFile&>().view();
  return mapped_view(py::dtype::of<uint32_t>(), {table.num_documents()},
                     table.codes(checked_column(column)), self);
}

py::array id_text(const py::object& self) {
  const std::string_view text = self.cast<const AttributeTableFile&>().view().id_text();
  return mapped_view(py::dtype::of<uint8_t>(), {static_cast<Py_intptr_t>(text.size())},
                     reinterpret_cast<const std::byte*>(text.data()), self);
}

}  // namespace

void bind_sidecars(py::module_& module) {
  using Release = py::call_guard<py::gil_scoped_release>;
  py::class_<SpanTableFile, std::shared_ptr<SpanTableFile>>(module, "SpanTable")
      .def(py::init<std::filesystem::path>(), py::arg("path"))
      .def_property_readonly("num_documents",
                             [](const SpanTableFile& t) { return t.view().num_documents(); })
      .def_property_readonly("num_spans",
                             [](const SpanTableFile& t) { return t.view().num_spans(); })
      .def_property_readonly("num_supervised",
                             [](const SpanTableFile& t) { return t.view().num_supervised(); })
      .def("offsets", &span_offsets)
      .def("spans", &all_spans)
      .def("document", &document_spans, py::arg("idx"))
      .def("check", &check_spans, py::arg("lengths").noconvert());

  py::class_<AttributeTableFile, std::shared_ptr<AttributeTableFile>>(module, "AttributeTable")
      .def(py::init<std::filesystem::path>(), py::arg("path"))
      .def_property_readonly("num_documents",
                             [](const AttributeTableFile& t) { return t.view().num_documents(); })
      .def("document", &document_attributes, py::arg("idx"))
      .def("values", &column_values, py::arg("column"))
      .def("codes", &column_codes, py::arg("column"))
      .def("id_text", &id_text)
      .def("check", [](const AttributeTableFile& t) { t.view().check(); }, Release());
}

}  // namespace dsm::bindings
