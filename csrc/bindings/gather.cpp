#include "core/gather.h"

#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <variant>
#include <vector>

#include "bindings/core_bindings.h"
#include "bindings/numpy_arrays.h"
#include "core/error.h"
#include "core/indexed_dataset.h"
#include "core/parallel.h"

namespace dsm::bindings {
namespace {

// Packs whose tokens, and whose entries in the tables, are asked for ahead of the one at hand.
constexpr size_t tokens_ahead = 2;
constexpr size_t entries_ahead = 4;

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
    if (vocab_size < 1) throw py::value_error("a vocabulary has at least one token");
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
      counts = gather_one(pack_idx, buffers);
    }
    return py::make_tuple(counts.max_seqlen, counts.num_documents, counts.num_supervised);
  }

  /// Fills buffers[i] with pack pack_indices[i]; returns max_seqlen, num_documents and
  /// num_supervised of each.
  Array<int64_t> gather_batch(const Array<int64_t>& pack_indices,
                              const std::vector<const PackBuffers*>& buffers, int threads) const {
    if (static_cast<size_t>(pack_indices.size()) != buffers.size() || threads < 1) {
      throw py::value_error("expected as many buffers as packs, and at least one thread");
    }
    const int64_t n = pack_indices.size();
    Array<int64_t> counts({n, int64_t{3}});
    const std::span<const int64_t> indices = bindings::view(pack_indices);
    int64_t* out = counts.mutable_data();
    {
      const py::gil_scoped_release release;
      for_each_part(threads, threads, [&](int64_t part) {
        const auto last = static_cast<size_t>(part_begin(n, threads, part + 1));
        for (auto i = static_cast<size_t>(part_begin(n, threads, part)); i < last; ++i) {
          if (i + entries_ahead < last) prefetch_entries_of(indices[i + entries_ahead]);
          if (i + tokens_ahead < last) prefetch_tokens_of(indices[i + tokens_ahead]);
          const PackedCounts found = gather_one(indices[i], *buffers[i]);
          out[3 * i] = found.max_seqlen;
          out[3 * i + 1] = found.num_documents;
          out[3 * i + 2] = found.num_supervised;
        }
      });
    }
    return counts;
  }

  /// Asks the memory for a pack that is gathered soon.
  void prefetch(int64_t pack_idx) const {
    prefetch_entries_of(pack_idx);
    prefetch_tokens_of(pack_idx);
  }

 private:
  PackedCounts gather_one(int64_t pack_idx, const PackBuffers& buffers) const {
    if (pack_idx < 0 || pack_idx + 1 >= pack_offsets_.size()) {
      throw InputError(concat("the pack index has ", pack_offsets_.size() - 1,
                              " packs, asked for pack ", pack_idx));
    }
    return std::visit(
        [&](const auto& documents, const auto& out) {
          const auto pack = documents_of(pack_idx, bindings::view(documents));
          if (!pack) throw InputError(concat("the pack index is damaged at pack ", pack_idx));
          if (static_cast<int64_t>(out.tokens.size()) != source_.layout.capacity ||
              out.cu_seqlens.size() < pack->size() + 2) {
            throw std::invalid_argument("the buffers are too small for this pack");
          }
          const int64_t begin = source_.layout.splits ? begins_.data()[pack_idx] : 0;
          return gather_pack(source_, PackView{*pack, begin}, out);
        },
        documents_, buffers.view());
  }

  void prefetch_entries_of(int64_t pack_idx) const {
    for_documents(pack_idx, [&](auto pack) { prefetch_entries(source_, pack); });
  }
  void prefetch_tokens_of(int64_t pack_idx) const {
    for_documents(pack_idx, [&](auto pack) { prefetch_tokens(source_, pack); });
  }
  template <class Visit>
  void for_documents(int64_t pack_idx, Visit visit) const {
    if (pack_idx < 0 || pack_idx + 1 >= pack_offsets_.size()) return;
    std::visit(
        [&](const auto& documents) {
          if (const auto pack = documents_of(pack_idx, bindings::view(documents))) visit(*pack);
        },
        documents_);
  }

  /// The documents of a pack that exists; nothing where its offsets are damaged.
  template <class Id>
  std::optional<std::span<const Id>> documents_of(int64_t pack_idx,
                                                  std::span<const Id> documents) const {
    const int64_t first = pack_offsets_.data()[pack_idx];
    const int64_t last = pack_offsets_.data()[pack_idx + 1];
    if (first < 0 || first > last || last > static_cast<int64_t>(documents.size())) return {};
    return documents.subspan(static_cast<size_t>(first), static_cast<size_t>(last - first));
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
