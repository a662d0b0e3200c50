#include <pybind11/stl.h>

#include <array>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings/core_bindings.h"
#include "bindings/numpy_arrays.h"
#include "core/error.h"
#include "core/pack_deal.h"
#include "core/pack_file.h"
#include "core/pack_index.h"
#include "core/pack_order.h"
#include "core/pack_statistics.h"

namespace dsm::bindings {
namespace {

template <class Id>
py::tuple build_and_release(const PackPlan& plan) {
  Packs<Id> packs;
  {
    py::gil_scoped_release release;
    packs = dsm::build_packs<Id>(plan);
  }
  const PackLedger& ledger = packs.ledger;
  return py::make_tuple(
      release_to_numpy(std::move(packs.offsets)), release_to_numpy(std::move(packs.documents)),
      release_to_numpy(std::move(packs.begins)),
      py::make_tuple(ledger.documents, ledger.tokens, ledger.dropped_documents,
                     ledger.dropped_tokens, ledger.truncated_documents, ledger.truncated_tokens));
}

py::tuple build_packs(const Array<int32_t>& lengths, int64_t capacity, uint32_t strategy,
                      uint64_t seed, uint64_t epoch, int64_t alignment, uint32_t overlong,
                      uint64_t cost_token, uint64_t cost_square, int threads, Arena* arena) {
  const PackPlan plan{.lengths = view(lengths),
                      .capacity = capacity,
                      .strategy = static_cast<PackStrategy>(strategy),
                      .seed = seed,
                      .epoch = epoch,
                      .alignment = alignment,
                      .overlong = static_cast<OverlongPolicy>(overlong),
                      .cost = {cost_token, cost_square},
                      .threads = threads,
                      .arena = arena};
  const bool fits_int32 = lengths.size() <= std::numeric_limits<int32_t>::max();
  return fits_int32 ? build_and_release<int32_t>(plan) : build_and_release<int64_t>(plan);
}

/// Calls work with the ids as the int32 or int64 they are, once the arrays can be of one index.
template <class Work>
auto with_documents(const py::array& documents, const Array<int64_t>& offsets,
                    const Array<int32_t>& begins, Work work) {
  const auto check = [&](int64_t num_pieces) {
    const std::span<const int64_t> ends = view(offsets);
    bool rises = !ends.empty() && ends.front() == 0 && ends.back() == num_pieces;
    for (size_t p = 0; p + 1 < ends.size(); ++p) rises &= ends[p] <= ends[p + 1];
    if (!rises || (begins.size() > 0 && begins.size() + 1 != offsets.size())) {
      throw InputError("the pack index is damaged: its offsets are not of its documents");
    }
  };
  check(documents.size());
  if (Array<int32_t>::check_(documents)) return work(Array<int32_t>(documents));
  if (Array<int64_t>::check_(documents)) return work(Array<int64_t>(documents));
  throw py::type_error("documents must be a contiguous int32 or int64 array");
}

py::tuple statistics(const Array<int32_t>& lengths, const Array<int64_t>& offsets,
                     const py::array& documents, const Array<int32_t>& begins, int64_t capacity,
                     int64_t alignment, bool truncates) {
  return with_documents(documents, offsets, begins, [&](const auto& ids) {
    const PackLayout layout{capacity, alignment, begins.size() > 0, truncates};
    PackStatistics s;
    {
      const py::gil_scoped_release release;
      s = pack_statistics(view(lengths), layout, view(offsets), view(ids), view(begins));
    }
    const auto high = static_cast<uint64_t>(s.sum_squares >> 64);
    const py::int_ sum_squares =
        (py::int_(high) << py::int_(64)) | py::int_(static_cast<uint64_t>(s.sum_squares));
    return py::make_tuple(s.num_packs, s.num_pieces, s.max_pieces, s.tokens, s.alignment_padding,
                          s.tail_padding, py::tuple(py::cast(s.fill_histogram)), sum_squares,
                          s.max_squares);
  });
}

py::tuple totals(const Array<int32_t>& lengths, const Array<int64_t>& offsets,
                 const py::array& documents, const Array<int32_t>& begins, int64_t capacity,
                 int64_t alignment, bool truncates) {
  return with_documents(documents, offsets, begins, [&](const auto& ids) {
    const PackLayout layout{capacity, alignment, begins.size() > 0, truncates};
    const int64_t n = offsets.size() - 1;
    Buffer<int64_t> tokens(n), slots(n), squares(n);
    {
      const py::gil_scoped_release release;
      pack_totals(view(lengths), layout, view(offsets), view(ids), view(begins),
                  {tokens.span(), slots.span(), squares.span()});
    }
    return py::make_tuple(release_to_numpy(std::move(tokens)), release_to_numpy(std::move(slots)),
                          release_to_numpy(std::move(squares)));
  });
}

void coverage(const Array<int32_t>& lengths, const Array<int64_t>& offsets,
              const py::array& documents, const Array<int32_t>& begins,
              const std::array<int64_t, 6>& ledger, int64_t capacity, int64_t alignment,
              bool truncates) {
  with_documents(documents, offsets, begins, [&](const auto& ids) {
    const PackLayout layout{capacity, alignment, begins.size() > 0, truncates};
    const py::gil_scoped_release release;
    check_coverage(view(lengths), layout, view(offsets), view(ids), view(begins),
                   {ledger[0], ledger[1], ledger[2], ledger[3], ledger[4], ledger[5]});
  });
}

py::array deal(const Array<int64_t>& pack_costs, int64_t ranks) {
  const std::vector<int64_t> dealt = deal_packs(view(pack_costs), ranks);
  return py::array_t<int64_t>(static_cast<int64_t>(dealt.size()), dealt.data());
}

std::span<const std::byte> bytes_of(const py::buffer_info& info) {
  return {static_cast<const std::byte*>(info.ptr), static_cast<size_t>(info.size * info.itemsize)};
}

PackFile parse_file(const py::buffer& content, const std::string& name) {
  const py::buffer_info info = content.request();
  return parse_pack_file(bytes_of(info), name);
}

void check_file_arrays(const py::buffer& content, const std::string& name) {
  const py::buffer_info info = content.request();
  const py::gil_scoped_release release;
  check_pack_arrays(bytes_of(info), name);
}

py::bytes header_bytes(const PackFile& file) {
  std::byte bytes[pack_header_bytes];
  write_pack_header(file, bytes);
  return {reinterpret_cast<const char*>(bytes), sizeof(bytes)};
}

void bind_pack_file(py::module_& module) {
  using Cost = std::pair<uint64_t, uint64_t>;
  using Ledger = std::array<int64_t, 6>;
  py::class_<PackFile> file(module, "PackFile");
  file.def(py::init<>())
      .def_static("parse", &parse_file, py::arg("content"), py::arg("name"))
      .def_static("check_arrays", &check_file_arrays, py::arg("content"), py::arg("name"))
      .def("to_bytes", &header_bytes)
      .def_property(
          "strategy", [](const PackFile& f) { return static_cast<uint32_t>(f.strategy); },
          [](PackFile& f, uint32_t value) { f.strategy = static_cast<PackStrategy>(value); })
      .def_property(
          "overlong", [](const PackFile& f) { return static_cast<uint32_t>(f.overlong); },
          [](PackFile& f, uint32_t value) { f.overlong = static_cast<OverlongPolicy>(value); })
      .def_property(
          "cost", [](const PackFile& f) { return Cost{f.cost.token, f.cost.square}; },
          [](PackFile& f, const Cost& c) { f.cost = {c.first, c.second}; })
      .def_property(
          "ledger",
          [](const PackFile& f) {
            const PackLedger& l = f.ledger;
            return py::make_tuple(l.documents, l.tokens, l.dropped_documents, l.dropped_tokens,
                                  l.truncated_documents, l.truncated_tokens);
          },
          [](PackFile& f, const Ledger& l) { f.ledger = {l[0], l[1], l[2], l[3], l[4], l[5]}; })
      .def_readwrite("num_packs", &PackFile::num_packs)
      .def_readwrite("num_pieces", &PackFile::num_pieces)
      .def_readwrite("capacity", &PackFile::capacity)
      .def_readwrite("alignment", &PackFile::alignment)
      .def_readwrite("seed", &PackFile::seed)
      .def_readwrite("epoch", &PackFile::epoch)
      .def_readwrite("id_bytes", &PackFile::id_bytes)
      .def_readwrite("has_begins", &PackFile::has_begins)
      .def_readwrite("lengths_xxh3", &PackFile::lengths_xxh3)
      .def_readwrite("payload_xxh3", &PackFile::payload_xxh3)
      .def_readwrite("header_xxh3", &PackFile::header_xxh3)
      .def_readonly("documents_begin", &PackFile::documents_begin)
      .def_readonly("begins_begin", &PackFile::begins_begin);
  file.attr("header_bytes") = pack_header_bytes;
  file.attr("hashed_bytes") = pack_header_hashed_bytes;
}

}  // namespace

void bind_packing(py::module_& module) {
  py::class_<Arena, std::shared_ptr<Arena>>(module, "Arena")
      .def(py::init<>())
      .def_property_readonly("idle_bytes", &Arena::idle_bytes);

  module.def("build_packs", &build_packs, py::arg("lengths").noconvert(), py::kw_only(),
             py::arg("capacity"), py::arg("strategy"), py::arg("seed"), py::arg("epoch"),
             py::arg("alignment"), py::arg("overlong"), py::arg("cost_token"),
             py::arg("cost_square"), py::arg("threads"), py::arg("arena").none(true));

  module.def("pack_statistics", &statistics, py::arg("lengths").noconvert(),
             py::arg("offsets").noconvert(), py::arg("documents").noconvert(),
             py::arg("begins").noconvert(), py::kw_only(), py::arg("capacity"),
             py::arg("alignment"), py::arg("truncates"));
  module.def("pack_totals", &totals, py::arg("lengths").noconvert(), py::arg("offsets").noconvert(),
             py::arg("documents").noconvert(), py::arg("begins").noconvert(), py::kw_only(),
             py::arg("capacity"), py::arg("alignment"), py::arg("truncates"));
  module.def("check_pack_coverage", &coverage, py::arg("lengths").noconvert(),
             py::arg("offsets").noconvert(), py::arg("documents").noconvert(),
             py::arg("begins").noconvert(), py::arg("ledger"), py::kw_only(), py::arg("capacity"),
             py::arg("alignment"), py::arg("truncates"));
  module.def("deal_packs", &deal, py::arg("costs").noconvert(), py::arg("ranks"));
  bind_pack_file(module);

  py::class_<PackOrder>(module, "PackOrder")
      .def(py::init<int64_t, uint64_t>(), py::arg("num_packs"), py::arg("seed"))
      .def("pack_at", &PackOrder::pack_at, py::arg("position"));
}

}  // namespace dsm::bindings
