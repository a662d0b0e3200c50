#include "core/gather.h"

#include <memory>
#include <variant>

#include "bindings/core_bindings.h"
#include "bindings/numpy_arrays.h"
#include "core/error.h"
#include "core/indexed_dataset.h"
#include "core/pack_index.h"

namespace dsm::bindings {
namespace {

/// A dataset, its supervision and a pack index, checked against each other once; keeps the arrays.
class PackGatherer {
 public:
  PackGatherer(std::shared_ptr<IndexedDataset> dataset, Array<int64_t> span_offsets,
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
    const PackedBatchView out{mutable_view(tokens),       mutable_view(labels),
                              mutable_view(loss_weights), mutable_view(position_ids),
                              mutable_view(document_ids), mutable_view(cu_seqlens)};
    const size_t capacity = out.tokens.size();
    if (out.labels.size() != capacity || out.loss_weights.size() != capacity ||
        out.position_ids.size() != capacity || out.document_ids.size() != capacity ||
        capacity > static_cast<size_t>(max_pack_capacity)) {
      throw py::value_error("the buffers of a packed batch must be of one size");
    }
    const PackedCounts counts = std::visit(
        [&](const auto& documents) { return gather_into(out, pack_idx, documents); }, documents_);
    return py::make_tuple(counts.max_seqlen, counts.num_documents, counts.num_supervised);
  }

 private:
  template <class Id>
  PackedCounts gather_into(const PackedBatchView& out, int64_t pack_idx,
                           const Array<Id>& documents) const {
    if (pack_idx < 0 || pack_idx + 1 >= pack_offsets_.size()) {
      throw InputError(concat("the pack index has ", pack_offsets_.size() - 1,
                              " packs, asked for pack ", pack_idx));
    }
    const int64_t first = pack_offsets_.data()[pack_idx];
    const int64_t last = pack_offsets_.data()[pack_idx + 1];
    if (first < 0 || first > last || last > documents.size()) {
      throw InputError(concat("the pack index is damaged at pack ", pack_idx));
    }
    const auto pack =
        view(documents).subspan(static_cast<size_t>(first), static_cast<size_t>(last - first));
    if (out.cu_seqlens.size() < pack.size() + 2) {
      throw py::value_error("cu_seqlens is too short for the documents of this pack");
    }
    const SpanTable supervision{view(span_offsets_), view(spans_)};
    py::gil_scoped_release release;
    return gather_pack<Id>(*dataset_, supervision, pack, vocab_size_, pad_id_, out);
  }

  std::shared_ptr<IndexedDataset> dataset_;
  Array<int64_t> span_offsets_;
  Array<int32_t> spans_;
  Array<int64_t> pack_offsets_;
  std::variant<Array<int32_t>, Array<int64_t>> documents_;
  int64_t vocab_size_;
  int64_t pad_id_;
};

}  // namespace

void bind_gather(py::module_& module) {
  py::class_<PackGatherer>(module, "PackGatherer")
      .def(py::init<std::shared_ptr<IndexedDataset>, Array<int64_t>, Array<int32_t>, Array<int64_t>,
                    py::array, int64_t, int64_t>(),
           py::arg("dataset"), py::arg("span_offsets").noconvert(), py::arg("spans").noconvert(),
           py::arg("pack_offsets").noconvert(), py::arg("documents").noconvert(),
           py::arg("vocab_size"), py::arg("pad_id"))
      .def("gather", &PackGatherer::gather, py::arg("pack_idx"), py::arg("tokens").noconvert(),
           py::arg("labels").noconvert(), py::arg("loss_weights").noconvert(),
           py::arg("position_ids").noconvert(), py::arg("document_ids").noconvert(),
           py::arg("cu_seqlens").noconvert());
}

}  // namespace dsm::bindings
