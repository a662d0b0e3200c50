#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "core/pack_pieces.h"

namespace dsm {

/// How well packs are filled, and how even they are.
struct PackStatistics {
  int64_t num_packs = 0;
  int64_t num_pieces = 0;                    ///< documents, each part of a cut one by itself
  int64_t max_pieces = 0;                    ///< of the fullest pack
  int64_t tokens = 0;                        ///< of documents, in packs
  int64_t alignment_padding = 0;             ///< slots behind documents up to the alignment
  int64_t tail_padding = 0;                  ///< slots behind the last document of a pack
  std::array<int64_t, 10> fill_histogram{};  ///< packs by tokens / capacity, tenths; 1 in the last
  unsigned __int128 sum_squares = 0;  ///< of all pieces' slots: what block-diagonal attention costs
  int64_t max_squares = 0;            ///< of one pack
};

/// Throws InputError where the packs do not fit the lengths.
template <class Id>
PackStatistics pack_statistics(std::span<const int32_t> lengths, const PackLayout& layout,
                               std::span<const int64_t> offsets, std::span<const Id> documents,
                               std::span<const int32_t> begins);

/// Per pack, each [packs]: tokens of documents, slots they take, and the sum of squared slots.
struct PackTotalsView {
  std::span<int64_t> tokens;
  std::span<int64_t> slots;
  std::span<int64_t> squares;
};

/// Throws InputError where the packs do not fit the lengths.
template <class Id>
void pack_totals(std::span<const int32_t> lengths, const PackLayout& layout,
                 std::span<const int64_t> offsets, std::span<const Id> documents,
                 std::span<const int32_t> begins, const PackTotalsView& out);

/// Throws InputError unless every token stands in one pack, in order, but for documents longer than
/// the capacity that were dropped whole or truncated, as many as the ledger says. For files, whose
/// checksums may be right and whose packs wrong.
template <class Id>
void check_coverage(std::span<const int32_t> lengths, const PackLayout& layout,
                    std::span<const int64_t> offsets, std::span<const Id> documents,
                    std::span<const int32_t> begins, const PackLedger& ledger);

}  // namespace dsm
