#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/indexed_dataset.h"
#include "core/pack_pieces.h"
#include "core/packed_metadata.h"

namespace dsm {

/// Supervised spans as CSR: those of document d are spans[offsets[d] .. offsets[d + 1]), each a
/// [begin, end) pair of token positions inside the document.
struct SpanTable {
  std::span<const int64_t> offsets;  ///< [num_documents + 1]
  std::span<const int32_t> spans;    ///< [num_spans * 2]
};

/// Buffers the caller owns, to be filled with one pack; T is the capacity. Index is int32_t or
/// int64_t.
template <class Index>
struct PackedBatchView {
  std::span<Index> tokens;          ///< [T]
  std::span<Index> labels;          ///< [T], no_label where there is none
  std::span<float> loss_weights;    ///< [T], 1 where there is a label
  std::span<Index> position_ids;    ///< [T], the position inside the document or its piece, from 0
  std::span<int32_t> document_ids;  ///< [T], index within the pack
  std::span<int32_t> cu_seqlens;    ///< [>= documents + 2], padded by repeating T
};

struct PackedCounts {
  int64_t max_seqlen = 0;      ///< slots of the longest document, the tail padding included
  int64_t num_documents = 0;   ///< with the tail padding, which is a document of its own
  int64_t num_supervised = 0;  ///< positions with a label
};

/// What packs are gathered from. Ids of tokens are in [0, vocab_size).
struct GatherSource {
  const IndexedDataset& dataset;
  SpanTable supervision;
  PackLayout layout;
  int64_t vocab_size = 0;
  int64_t pad_id = 0;
};

/// Fills `out` with the pack's documents, each followed by padding up to the alignment, and the
/// rest with pad_id. A position has a label where the next token is of the same document and lies
/// in one of its supervised spans; where concat_split cut a document, the last token of the piece
/// has the label that follows in the next pack. Throws InputError where a document does not exist,
/// the pack does not fit, a token id is outside the vocabulary, or the spans are damaged.
template <class Id, class Index>
PackedCounts gather_pack(const GatherSource& source, const PackView<Id>& pack,
                         const PackedBatchView<Index>& out);

// The documents of a pack lie anywhere in the files, so gathering one waits for memory unless it
// was asked for ahead: the entries of the tables `entries_ahead` packs before, which say where the
// tokens are, and the tokens `tokens_ahead` packs before. Damage is not reported here but when the
// pack is gathered.
inline constexpr size_t entries_ahead = 4;
inline constexpr size_t tokens_ahead = 2;

template <class Id>
void prefetch_entries(const GatherSource& source, const PackView<Id>& pack) noexcept;

template <class Id>
void prefetch_tokens(const GatherSource& source, const PackView<Id>& pack) noexcept;

/// Gathers packs[i] into outs[i] on up to `threads` threads; all threads have stopped when it
/// returns or throws, as gather_pack does.
template <class Id, class Index>
std::vector<PackedCounts> gather_packs(const GatherSource& source,
                                       std::span<const PackView<Id>> packs,
                                       std::span<const PackedBatchView<Index>> outs, int threads);

}  // namespace dsm
