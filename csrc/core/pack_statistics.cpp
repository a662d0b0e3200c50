#include "core/pack_statistics.h"

#include "core/error.h"

namespace dsm {
namespace {

struct PackTotals {
  int64_t tokens = 0;
  int64_t slots = 0;
  int64_t squares = 0;
};

/// Calls visit(pack, pieces, totals) for every pack.
template <class Id, class Visit>
void for_each_pack(std::span<const int32_t> lengths, const PackLayout& layout,
                   std::span<const int64_t> offsets, std::span<const Id> documents,
                   std::span<const int32_t> begins, Visit visit) {
  const auto length_of = [&](Id document) -> int64_t {
    const size_t idx = static_cast<size_t>(document);
    if (idx >= lengths.size()) {
      throw InputError(concat("the pack index names document ", document, " of ", lengths.size()));
    }
    return lengths[idx];
  };
  for (size_t p = 0; p + 1 < offsets.size(); ++p) {
    const auto first = static_cast<size_t>(offsets[p]);
    const auto last = static_cast<size_t>(offsets[p + 1]);
    const PackView<Id> pack{documents.subspan(first, last - first), layout.splits ? begins[p] : 0};
    PackTotals totals;
    totals.slots = for_each_piece(layout, pack, length_of, [&](const PackPiece<Id>& piece) {
      totals.tokens += piece.length;
      totals.squares += piece.slots * piece.slots;
    });
    visit(p, static_cast<int64_t>(last - first), totals);
  }
}

}  // namespace

template <class Id>
PackStatistics pack_statistics(std::span<const int32_t> lengths, const PackLayout& layout,
                               std::span<const int64_t> offsets, std::span<const Id> documents,
                               std::span<const int32_t> begins) {
  PackStatistics statistics;
  statistics.num_packs = static_cast<int64_t>(offsets.size()) - 1;
  statistics.num_pieces = static_cast<int64_t>(documents.size());
  for_each_pack(lengths, layout, offsets, documents, begins,
                [&](size_t, int64_t pieces, const PackTotals& totals) {
                  statistics.max_pieces = std::max(statistics.max_pieces, pieces);
                  statistics.tokens += totals.tokens;
                  statistics.alignment_padding += totals.slots - totals.tokens;
                  statistics.tail_padding += layout.capacity - totals.slots;
                  const int64_t tenth = std::min<int64_t>(totals.tokens * 10 / layout.capacity, 9);
                  ++statistics.fill_histogram[static_cast<size_t>(tenth)];
                  statistics.sum_squares += totals.squares;
                  statistics.max_squares = std::max(statistics.max_squares, totals.squares);
                });
  return statistics;
}

template <class Id>
void pack_totals(std::span<const int32_t> lengths, const PackLayout& layout,
                 std::span<const int64_t> offsets, std::span<const Id> documents,
                 std::span<const int32_t> begins, const PackTotalsView& out) {
  for_each_pack(lengths, layout, offsets, documents, begins,
                [&](size_t pack, int64_t, const PackTotals& totals) {
                  out.tokens[pack] = totals.tokens;
                  out.slots[pack] = totals.slots;
                  out.squares[pack] = totals.squares;
                });
}

#define DSM_INSTANTIATE(Id)                                                                        \
  template PackStatistics pack_statistics(std::span<const int32_t>, const PackLayout&,             \
                                          std::span<const int64_t>, std::span<const Id>,           \
                                          std::span<const int32_t>);                               \
  template void pack_totals(std::span<const int32_t>, const PackLayout&, std::span<const int64_t>, \
                            std::span<const Id>, std::span<const int32_t>, const PackTotalsView&);
DSM_INSTANTIATE(int32_t)
DSM_INSTANTIATE(int64_t)
#undef DSM_INSTANTIATE

}  // namespace dsm
