#include "core/pack_statistics.h"

#include <vector>

#include "core/error.h"

namespace dsm {
namespace {

struct PackTotals {
  int64_t tokens = 0;
  int64_t slots = 0;
  int64_t squares = 0;
};

/// Calls visit_piece(piece) for every piece and visit(pack, pieces, totals) after those of a pack.
template <class Id, class VisitPiece, class Visit>
void for_each_pack(std::span<const int32_t> lengths, const PackLayout& layout,
                   std::span<const int64_t> offsets, std::span<const Id> documents,
                   std::span<const int32_t> begins, VisitPiece visit_piece, Visit visit) {
  check_layout(layout);
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
      visit_piece(piece);
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
  const auto pass = [](const PackPiece<Id>&) {};
  statistics.num_packs = static_cast<int64_t>(offsets.size()) - 1;
  statistics.num_pieces = static_cast<int64_t>(documents.size());
  for_each_pack(lengths, layout, offsets, documents, begins, pass,
                [&](size_t, int64_t pieces, const PackTotals& totals) {
                  statistics.max_pieces = std::max(statistics.max_pieces, pieces);
                  statistics.tokens += totals.tokens;
                  statistics.alignment_padding += totals.slots - totals.tokens;
                  statistics.tail_padding += layout.capacity - totals.slots;
                  const int64_t tenth = std::min<int64_t>(totals.tokens * 10 / layout.capacity, 9);
                  ++statistics.fill_histogram[static_cast<size_t>(tenth)];
                  statistics.sum_squares += static_cast<uint64_t>(totals.squares);
                  statistics.max_squares = std::max(statistics.max_squares, totals.squares);
                });
  return statistics;
}

template <class Id>
void pack_totals(std::span<const int32_t> lengths, const PackLayout& layout,
                 std::span<const int64_t> offsets, std::span<const Id> documents,
                 std::span<const int32_t> begins, const PackTotalsView& out) {
  for_each_pack(
      lengths, layout, offsets, documents, begins, [](const PackPiece<Id>&) {},
      [&](size_t pack, int64_t, const PackTotals& totals) {
        out.tokens[pack] = totals.tokens;
        out.slots[pack] = totals.slots;
        out.squares[pack] = totals.squares;
      });
}

template <class Id>
void check_coverage(std::span<const int32_t> lengths, const PackLayout& layout,
                    std::span<const int64_t> offsets, std::span<const Id> documents,
                    std::span<const int32_t> begins, const PackLedger& ledger) {
  std::vector<int32_t> packed(lengths.size(), 0);  // tokens of each document so far
  for_each_pack(
      lengths, layout, offsets, documents, begins,
      [&](const PackPiece<Id>& piece) {
        int32_t& end = packed[static_cast<size_t>(piece.document)];
        if (piece.begin != end) {
          throw InputError(concat("the packs are not of one plan: document ", piece.document,
                                  " goes on at token ", piece.begin, " after ", end));
        }
        end += static_cast<int32_t>(piece.length);
      },
      [](size_t, int64_t, const PackTotals&) {});
  PackLedger found{.documents = static_cast<int64_t>(lengths.size())};
  for (size_t d = 0; d < lengths.size(); ++d) {
    const int64_t length = lengths[d];
    found.tokens += length;
    if (packed[d] == length) continue;
    const bool is_overlong = length > layout.capacity && !layout.splits;
    if (is_overlong && packed[d] == 0) {
      ++found.dropped_documents;
      found.dropped_tokens += length;
    } else if (is_overlong && packed[d] == layout.capacity) {
      ++found.truncated_documents;
      found.truncated_tokens += length - layout.capacity;
    } else {
      throw InputError(concat("the packs are not of one plan: they hold ", packed[d], " of the ",
                              length, " tokens of document ", d));
    }
  }
  if (found != ledger) {
    throw InputError(concat("the ledger of the packs is wrong: ", found.dropped_documents,
                            " documents are dropped and ", found.truncated_documents,
                            " truncated"));
  }
}

#define DSM_INSTANTIATE(Id)                                                                        \
  template PackStatistics pack_statistics(std::span<const int32_t>, const PackLayout&,             \
                                          std::span<const int64_t>, std::span<const Id>,           \
                                          std::span<const int32_t>);                               \
  template void pack_totals(std::span<const int32_t>, const PackLayout&, std::span<const int64_t>, \
                            std::span<const Id>, std::span<const int32_t>, const PackTotalsView&); \
  template void check_coverage(std::span<const int32_t>, const PackLayout&,                        \
                               std::span<const int64_t>, std::span<const Id>,                      \
                               std::span<const int32_t>, const PackLedger&);
DSM_INSTANTIATE(int32_t)
DSM_INSTANTIATE(int64_t)
#undef DSM_INSTANTIATE

}  // namespace dsm
