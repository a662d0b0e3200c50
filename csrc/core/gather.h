#pragma once

#include <cstdint>
#include <span>

#include "core/indexed_dataset.h"

namespace dsm {

/// Label of a position that is not trained on.
inline constexpr int64_t no_label = -100;

/// Supervised spans as CSR: those of document d are spans[offsets[d] .. offsets[d + 1]), each a
/// [begin, end) pair of token positions inside the document.
struct SpanTable {
  std::span<const int64_t> offsets;  ///< [num_documents + 1]
  std::span<const int32_t> spans;    ///< [num_spans * 2]
};

/// Buffers the caller owns, to be filled with one pack; T is the capacity.
struct PackedBatchView {
  std::span<int64_t> tokens;        ///< [T]
  std::span<int64_t> labels;        ///< [T], no_label where there is none
  std::span<float> loss_weights;    ///< [T], 1 where there is a label
  std::span<int64_t> position_ids;  ///< [T], from 0 in each document
  std::span<int32_t> document_ids;  ///< [T], index within the pack
  std::span<int32_t> cu_seqlens;    ///< [>= documents + 2], padded by repeating T
};

struct PackedCounts {
  int64_t max_seqlen = 0;      ///< tokens of the longest document, the tail padding included
  int64_t num_documents = 0;   ///< with the tail padding, which is a document of its own
  int64_t num_supervised = 0;  ///< positions with a label
};

/// Fills `out` with the documents, one after the other, and the rest with pad_id. A position has a
/// label where the next token is of the same document and lies in one of its supervised spans.
/// Throws InputError where a document does not exist, the pack overflows, a token id is outside
/// [0, vocab_size), or the spans are damaged.
template <class Id>
PackedCounts gather_pack(const IndexedDataset& dataset, const SpanTable& supervision,
                         std::span<const Id> documents, int64_t vocab_size, int64_t pad_id,
                         const PackedBatchView& out);

extern template PackedCounts gather_pack(const IndexedDataset&, const SpanTable&,
                                         std::span<const int32_t>, int64_t, int64_t,
                                         const PackedBatchView&);
extern template PackedCounts gather_pack(const IndexedDataset&, const SpanTable&,
                                         std::span<const int64_t>, int64_t, int64_t,
                                         const PackedBatchView&);

}  // namespace dsm
