// dsm_engine._core: the C++ core for Python. Arrays come in as NumPy arrays of the exact dtype and
// go out as NumPy arrays that own or keep alive what they show. Long calls release the GIL.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl/filesystem.h>

#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <variant>

#include "core/dense_mask.h"
#include "core/error.h"
#include "core/gather.h"
#include "core/indexed_dataset.h"
#include "core/pack_index.h"
#include "core/pack_order.h"
#include "core/packed_metadata.h"

namespace py = pybind11;

namespace {

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

template <class T>
py::array release_to_numpy(dsm::Buffer<T> buffer) {
  const int64_t size = buffer.size();
  T* data = buffer.release();
  py::capsule owner(data, [](void* memory) { delete[] static_cast<T*>(memory); });
  return py::array_t<T>(size, data, owner);
}

dsm::PackStrategy parse_strategy(const std::string& name) {
  if (name == "random") return dsm::PackStrategy::random;
  if (name == "best_fit") return dsm::PackStrategy::best_fit;
  throw dsm::InputError("unknown packing strategy '" + name + "' (known: best_fit, random)");
}

template <class Id>
py::tuple build_and_release(const dsm::PackPlan& plan) {
  dsm::Packs<Id> packs;
  {
    py::gil_scoped_release release;
    packs = dsm::build_packs<Id>(plan);
  }
  return py::make_tuple(release_to_numpy(std::move(packs.offsets)),
                        release_to_numpy(std::move(packs.documents)));
}

py::tuple build_packs(const Array<int32_t>& lengths, int64_t capacity, const std::string& strategy,
                      uint64_t seed, uint64_t epoch) {
  const dsm::PackPlan plan{view(lengths), capacity, parse_strategy(strategy), seed, epoch};
  const bool fits_int32 = lengths.size() <= std::numeric_limits<int32_t>::max();
  return fits_int32 ? build_and_release<int32_t>(plan) : build_and_release<int64_t>(plan);
}

py::dtype numpy_dtype(dsm::TokenType type) {
  switch (type) {
    case dsm::TokenType::uint8:
      return py::dtype::of<uint8_t>();
    case dsm::TokenType::int8:
      return py::dtype::of<int8_t>();
    case dsm::TokenType::int16:
      return py::dtype::of<int16_t>();
    case dsm::TokenType::int32:
      return py::dtype::of<int32_t>();
    case dsm::TokenType::int64:
      return py::dtype::of<int64_t>();
    case dsm::TokenType::float64:
      return py::dtype::of<double>();
    case dsm::TokenType::float32:
      return py::dtype::of<float>();
    case dsm::TokenType::uint16:
      return py::dtype::of<uint16_t>();
  }
  throw std::logic_error("a token type without a NumPy dtype");
}

/// The view's base is the dataset object, so the mapping lives as long as the view does.
py::array document_view(const py::object& self, int64_t idx) {
  const auto& dataset = self.cast<const dsm::IndexedDataset&>();
  const dsm::DocumentView document = dataset.document(idx);
  py::array array(numpy_dtype(dataset.token_type()), {document.length}, {}, document.data, self);
  py::detail::array_proxy(array.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
  return array;
}

py::array lengths_copy(const dsm::IndexedDataset& dataset) {
  py::array_t<int32_t> lengths(dataset.num_documents());
  std::memcpy(lengths.mutable_data(), dataset.lengths(), static_cast<size_t>(lengths.nbytes()));
  return lengths;
}

/// A dataset, its supervision and a pack index, checked against each other once; keeps the arrays.
class PackGatherer {
 public:
  PackGatherer(std::shared_ptr<dsm::IndexedDataset> dataset, Array<int64_t> span_offsets,
               Array<int32_t> spans, Array<int64_t> pack_offsets, const py::array& documents,
               int64_t vocab_size, int64_t pad_id)
      : dataset_(std::move(dataset)),
        span_offsets_(std::move(span_offsets)),
        spans_(std::move(spans)),
        pack_offsets_(std::move(pack_offsets)),
        vocab_size_(vocab_size),
        pad_id_(pad_id) {
    if (vocab_size_ < 1) throw py::value_error("a vocabulary has at least one token");
    if (span_offsets_.size() != dataset_->num_documents() + 1 || spans_.size() % 2 != 0) {
      throw py::value_error("the spans are not of this dataset");
    }
    if (Array<int32_t>::check_(documents)) {
      documents_ = Array<int32_t>(documents);
    } else if (Array<int64_t>::check_(documents)) {
      documents_ = Array<int64_t>(documents);
    } else {
      throw py::type_error("documents must be a contiguous int32 or int64 array");
    }
  }

  py::tuple gather(int64_t pack_idx, Array<int64_t> tokens, Array<int64_t> labels,
                   Array<float> loss_weights, Array<int64_t> position_ids,
                   Array<int32_t> document_ids, Array<int32_t> cu_seqlens) const {
    const dsm::PackedBatchView out{mutable_view(tokens),       mutable_view(labels),
                                   mutable_view(loss_weights), mutable_view(position_ids),
                                   mutable_view(document_ids), mutable_view(cu_seqlens)};
    const size_t capacity = out.tokens.size();
    if (out.labels.size() != capacity || out.loss_weights.size() != capacity ||
        out.position_ids.size() != capacity || out.document_ids.size() != capacity ||
        capacity > static_cast<size_t>(dsm::max_pack_capacity)) {
      throw py::value_error("the buffers of a packed batch must be of one size");
    }
    const dsm::PackedCounts counts = std::visit(
        [&](const auto& documents) { return gather_into(out, pack_idx, documents); }, documents_);
    return py::make_tuple(counts.max_seqlen, counts.num_documents, counts.num_supervised);
  }

 private:
  template <class Id>
  dsm::PackedCounts gather_into(const dsm::PackedBatchView& out, int64_t pack_idx,
                                const Array<Id>& documents) const {
    if (pack_idx < 0 || pack_idx + 1 >= pack_offsets_.size()) {
      throw dsm::InputError(dsm::concat("the pack index has ", pack_offsets_.size() - 1,
                                        " packs, asked for pack ", pack_idx));
    }
    const int64_t first = pack_offsets_.data()[pack_idx];
    const int64_t last = pack_offsets_.data()[pack_idx + 1];
    if (first < 0 || first > last || last > documents.size()) {
      throw dsm::InputError(dsm::concat("the pack index is damaged at pack ", pack_idx));
    }
    const auto pack =
        view(documents).subspan(static_cast<size_t>(first), static_cast<size_t>(last - first));
    if (out.cu_seqlens.size() < pack.size() + 2) {
      throw py::value_error("cu_seqlens is too short for the documents of this pack");
    }
    const dsm::SpanTable supervision{view(span_offsets_), view(spans_)};
    py::gil_scoped_release release;
    return dsm::gather_pack<Id>(*dataset_, supervision, pack, vocab_size_, pad_id_, out);
  }

  std::shared_ptr<dsm::IndexedDataset> dataset_;
  Array<int64_t> span_offsets_;
  Array<int32_t> spans_;
  Array<int64_t> pack_offsets_;
  std::variant<Array<int32_t>, Array<int64_t>> documents_;
  int64_t vocab_size_;
  int64_t pad_id_;
};

// The operators take addresses as integers: reading a tensor's costs far less than wrapping it.
template <class T>
std::span<T> span_at(uintptr_t address, int64_t size) {
  return {reinterpret_cast<T*>(address), static_cast<size_t>(size)};
}

void packed_metadata(uintptr_t cu_seqlens, int64_t num_entries, int64_t num_tokens,
                     uintptr_t position_ids, uintptr_t document_ids) {
  py::gil_scoped_release release;
  dsm::packed_metadata(span_at<const int32_t>(cu_seqlens, num_entries),
                       span_at<int64_t>(position_ids, num_tokens),
                       span_at<int32_t>(document_ids, num_tokens));
}

void dense_mask(uintptr_t cu_seqlens, int64_t num_entries, int64_t num_tokens, uintptr_t mask) {
  py::gil_scoped_release release;
  dsm::dense_mask(span_at<const int32_t>(cu_seqlens, num_entries), num_tokens,
                  span_at<uint8_t>(mask, num_tokens * num_tokens));
}

void register_dsm_error() {
  // Leaked on purpose: the translator outlives the interpreter's modules.
  static const auto* dsm_error =
      new py::object(py::module_::import("dsm_engine.errors").attr("DsmError"));
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const dsm::InputError& error) {
      py::set_error(*dsm_error, error.what());
    }
  });
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The C++ core of dsm_engine; use it through dsm_engine.data and dsm_engine.ops.";
  register_dsm_error();

  module.def("build_packs", &build_packs, py::arg("lengths").noconvert(), py::arg("capacity"),
             py::arg("strategy"), py::arg("seed"), py::arg("epoch"));

  py::class_<dsm::PackOrder>(module, "PackOrder")
      .def(py::init<int64_t, uint64_t>(), py::arg("num_packs"), py::arg("seed"))
      .def("pack_at", &dsm::PackOrder::pack_at, py::arg("position"));

  py::class_<dsm::IndexedDataset, std::shared_ptr<dsm::IndexedDataset>>(module, "IndexedDataset")
      .def(py::init<std::filesystem::path>(), py::arg("prefix"))
      .def_property_readonly("num_documents", &dsm::IndexedDataset::num_documents)
      .def_property_readonly(
          "dtype",
          [](const dsm::IndexedDataset& dataset) { return numpy_dtype(dataset.token_type()); })
      .def("document", &document_view, py::arg("idx"))
      .def("lengths", &lengths_copy);

  py::class_<PackGatherer>(module, "PackGatherer")
      .def(py::init<std::shared_ptr<dsm::IndexedDataset>, Array<int64_t>, Array<int32_t>,
                    Array<int64_t>, py::array, int64_t, int64_t>(),
           py::arg("dataset"), py::arg("span_offsets").noconvert(), py::arg("spans").noconvert(),
           py::arg("pack_offsets").noconvert(), py::arg("documents").noconvert(),
           py::arg("vocab_size"), py::arg("pad_id"))
      .def("gather", &PackGatherer::gather, py::arg("pack_idx"), py::arg("tokens").noconvert(),
           py::arg("labels").noconvert(), py::arg("loss_weights").noconvert(),
           py::arg("position_ids").noconvert(), py::arg("document_ids").noconvert(),
           py::arg("cu_seqlens").noconvert());

  module.def("packed_metadata", &packed_metadata, py::arg("cu_seqlens"), py::arg("num_entries"),
             py::arg("num_tokens"), py::arg("position_ids"), py::arg("document_ids"));
  module.def("dense_mask", &dense_mask, py::arg("cu_seqlens"), py::arg("num_entries"),
             py::arg("num_tokens"), py::arg("mask"));
}
