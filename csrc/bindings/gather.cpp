#include "core/gather.h"

#include <pybind11/stl.h>

#include <functional>
#include <limits>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <variant>
#include <vector>

#include "bindings/core_bindings.h"
#include "bindings/numpy_arrays.h"
#include "core/error.h"
#include "core/indexed_dataset.h"

namespace dsm::bindings {
namespace {

/// The arrays of one packed batch, checked once; keeps them.
class PackBuffers {
 public:
  PackBuffers(const py::array& tokens, const py::array& labels, Array<float> loss_weights,
              const py::array& position_ids, Array<int32_t> document_ids, Array<int32_t> cu_seqlens)
      : kept_(
            py::make_tuple(tokens, labels, loss_weights, position_ids, document_ids, cu_seqlens)) {
    if (Array<int32_t>::check_(tokens)) {
      view_ =
          view_as<int32_t>(tokens, labels, loss_weights, position_ids, document_ids, cu_seqlens);
    } else {
      view_ =
          view_as<int64_t>(tokens, labels, loss_weights, position_ids, document_ids, cu_seqlens);
    }
  }

  using View = std::variant<PackedBatchView<int32_t>, PackedBatchView<int64_t>>;
  const View& view() const { return view_; }

 private:
  template <class Index>
  static PackedBatchView<Index> view_as(const py::array& tokens, const py::array& labels,
                                        Array<float>& loss_weights, const py::array& position_ids,
                                        Array<int32_t>& document_ids, Array<int32_t>& cu_seqlens) {
    for (const py::array& array : {tokens, labels, position_ids}) {
      if (!Array<Index>::check_(array)) {
        throw py::type_error(
            "tokens, labels and position_ids must be contiguous and all int32 or all int64");
      }
    }
    Array<Index> token_array(tokens), label_array(labels), position_array(position_ids);
    const PackedBatchView<Index> view{mutable_view(token_array),  mutable_view(label_array),
                                      mutable_view(loss_weights), mutable_view(position_array),
                                      mutable_view(document_ids), mutable_view(cu_seqlens)};
    const size_t size = view.tokens.size();
    if (view.labels.size() != size || view.loss_weights.size() != size ||
        view.position_ids.size() != size || view.document_ids.size() != size) {
      throw py::value_error("the buffers of a packed batch must be of one size");
    }
    return view;
  }

  py::tuple kept_;
  View view_;
};

/// A dataset, its supervision and a pack index, checked against each other once; keeps the arrays.
class PackGatherer {
 public:
  PackGatherer(std::shared_ptr<IndexedDataset> dataset, Array<int64_t> span_offsets,
               Array<int32_t> spans, Array<int64_t> pack_offsets, const py::array& documents,
               Array<int32_t> begins, int64_t capacity, int64_t alignment, bool truncates,
               int64_t vocab_size, int64_t pad_id)
      : dataset_(std::move(dataset)),
        span_offsets_(std::move(span_offsets)),
        spans_(std::move(spans)),
        pack_offsets_(std::move(pack_offsets)),
        begins_(std::move(begins)),
        source_{*dataset_,
                {bindings::view(span_offsets_), bindings::view(spans_)},
                {capacity, alignment, begins_.size() > 0, truncates},
                vocab_size,
                pad_id} {
    check_layout(source_.layout);
    if (vocab_size < 1) throw py::value_error("a vocabulary has at least one token");
    if (pad_id < 0 || pad_id > std::numeric_limits<int32_t>::max()) {
      throw py::value_error("the id of padding must be 0 to 2^31 - 1");
    }
    if (span_offsets_.size() != dataset_->num_documents() + 1 || spans_.size() % 2 != 0) {
      throw py::value_error("the spans are not of this dataset");
    }
    if (pack_offsets_.size() < 1 ||
        (begins_.size() > 0 && begins_.size() + 1 != pack_offsets_.size())) {
      throw py::value_error("the begins are not of these packs");
    }
    if (Array<int32_t>::check_(documents)) {
      documents_ = Array<int32_t>(documents);
    } else if (Array<int64_t>::check_(documents)) {
      documents_ = Array<int64_t>(documents);
    } else {
      throw py::type_error("documents must be a contiguous int32 or int64 array");
    }
  }

  py::tuple gather(int64_t pack_idx, const PackBuffers& buffers) const {
    PackedCounts counts;
    {
      const py::gil_scoped_release release;
      counts = std::visit(
          [&](const auto& documents, const auto& out) {
            const auto pack = pack_at(pack_idx, bindings::view(documents));
            check_room(pack.documents.size(), out);
            return gather_pack(source_, pack, out);
          },
          documents_, buffers.view());
    }
    return py::make_tuple(counts.max_seqlen, counts.num_documents, counts.num_supervised);
  }

  /// Fills buffers[i] with pack pack_indices[i]; returns max_seqlen, num_documents and
  /// num_supervised of each. The buffers are all int32 or all int64.
  Array<int64_t> gather_batch(const Array<int64_t>& pack_indices,
                              const std::vector<std::reference_wrapper<const PackBuffers>>& buffers,
                              int threads) const {
    if (static_cast<size_t>(pack_indices.size()) != buffers.size()) {
      throw py::value_error("expected as many buffers as packs");
    }
    if (threads < 1 || threads > 1024) {
      throw InputError(concat("threads must be 1 to 1024, found ", threads));
    }
    Array<int64_t> counts({pack_indices.size(), int64_t{3}});
    if (buffers.empty()) return counts;
    std::visit(
        [&](const auto& documents, const auto& first) {
          using Out = std::remove_cvref_t<decltype(first)>;
          using Id = typename std::remove_cvref_t<decltype(documents)>::value_type;
          fill_batch<Id, Out>(bindings::view(pack_indices), bindings::view(documents), buffers,
                              threads, counts.mutable_data());
        },
        documents_, buffers.front().get().view());
    return counts;
  }

  /// Asks the memory for a pack that is gathered soon.
  void prefetch(int64_t pack_idx) const {
    std::visit(
        [&](const auto& documents) {
          const auto pack = pack_at(pack_idx, bindings::view(documents));
          prefetch_entries(source_, pack);
          prefetch_tokens(source_, pack);
        },
        documents_);
  }

 private:
  template <class Id, class Out>
  void fill_batch(std::span<const int64_t> pack_indices, std::span<const Id> documents,
                  const std::vector<std::reference_wrapper<const PackBuffers>>& buffers,
                  int threads, int64_t* counts) const {
    const py::gil_scoped_release release;
    std::vector<PackView<Id>> packs;
    std::vector<Out> outs;
    for (size_t i = 0; i < buffers.size(); ++i) {
      const Out* out = std::get_if<Out>(&buffers[i].get().view());
      if (out == nullptr) {
        throw std::invalid_argument("the buffers of a batch must be all int32 or all int64");
      }
      packs.push_back(pack_at(pack_indices[i], documents));
      outs.push_back(*out);
      check_room(packs.back().documents.size(), *out);
    }
    for (const PackedCounts& found : gather_packs(source_, std::span<const PackView<Id>>(packs),
                                                  std::span<const Out>(outs), threads)) {
      *counts++ = found.max_seqlen;
      *counts++ = found.num_documents;
      *counts++ = found.num_supervised;
    }
  }

  template <class Out>
  void check_room(size_t num_documents, const Out& out) const {
    if (static_cast<int64_t>(out.tokens.size()) != source_.layout.capacity ||
        out.cu_seqlens.size() < num_documents + 2) {
      throw std::invalid_argument("the buffers are too small for this pack");
    }
  }

  template <class Id>
  PackView<Id> pack_at(int64_t pack_idx, std::span<const Id> documents) const {
    if (pack_idx < 0 || pack_idx + 1 >= pack_offsets_.size()) {
      throw InputError(concat("the pack index has ", pack_offsets_.size() - 1,
                              " packs, asked for pack ", pack_idx));
    }
    const int64_t first = pack_offsets_.data()[pack_idx];
    const int64_t last = pack_offsets_.data()[pack_idx + 1];
    if (first < 0 || first > last || last > static_cast<int64_t>(documents.size())) {
      throw InputError(concat("the pack index is damaged at pack ", pack_idx));
    }
    return {documents.subspan(static_cast<size_t>(first), static_cast<size_t>(last - first)),
            source_.layout.splits ? begins_.data()[pack_idx] : 0};
  }

  std::shared_ptr<IndexedDataset> dataset_;
  Array<int64_t> span_offsets_;
  Array<int32_t> spans_;
  Array<int64_t> pack_offsets_;
  Array<int32_t> begins_;
  std::variant<Array<int32_t>, Array<int64_t>> documents_;
  GatherSource source_;
};

}  // namespace

void bind_gather(py::module_& module) {
  py::class_<PackBuffers>(module, "PackBuffers")
      .def(
          py::init<py::array, py::array, Array<float>, py::array, Array<int32_t>, Array<int32_t>>(),
          py::arg("tokens").noconvert(), py::arg("labels").noconvert(),
          py::arg("loss_weights").noconvert(), py::arg("position_ids").noconvert(),
          py::arg("document_ids").noconvert(), py::arg("cu_seqlens").noconvert());

  py::class_<PackGatherer>(module, "PackGatherer")
      .def(py::init<std::shared_ptr<IndexedDataset>, Array<int64_t>, Array<int32_t>, Array<int64_t>,
                    py::array, Array<int32_t>, int64_t, int64_t, bool, int64_t, int64_t>(),
           py::arg("dataset"), py::arg("span_offsets").noconvert(), py::arg("spans").noconvert(),
           py::arg("pack_offsets").noconvert(), py::arg("documents").noconvert(),
           py::arg("begins").noconvert(), py::kw_only(), py::arg("capacity"), py::arg("alignment"),
           py::arg("truncates"), py::arg("vocab_size"), py::arg("pad_id"))
      .def("gather", &PackGatherer::gather, py::arg("pack_idx"), py::arg("buffers"))
      .def("gather_batch", &PackGatherer::gather_batch, py::arg("pack_indices").noconvert(),
           py::arg("buffers"), py::arg("threads"))
      .def("prefetch", &PackGatherer::prefetch, py::arg("pack_idx"));
}

}  // namespace dsm::bindings
