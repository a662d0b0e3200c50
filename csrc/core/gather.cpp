#include "core/gather.h"

#include <algorithm>
#include <cassert>
#include <limits>
#include <numeric>

#include "core/error.h"

namespace dsm {
namespace {

/// Copies the document's tokens; false where one is outside [0, last]. No branch in the loop.
template <class Token>
bool widen(const DocumentView& document, uint32_t last, int64_t* out) {
  const Token* tokens = reinterpret_cast<const Token*>(document.data);
  uint32_t outside = 0;  // its top bit: a token was negative, or last - token was
  for (int64_t i = 0; i < document.length; ++i) {
    const uint32_t token = static_cast<uint32_t>(tokens[i]);
    outside |= token | (last - token);
    out[i] = tokens[i];
  }
  return outside >> 31 == 0;
}

/// As `widen`, for the dataset's own type of tokens.
bool copy_tokens(const IndexedDataset& dataset, const DocumentView& document, uint32_t last,
                 int64_t* out) {
  switch (dataset.token_type()) {
    case TokenType::uint16:
      return widen<uint16_t>(document, last, out);
    case TokenType::int32:
      return widen<int32_t>(document, last, out);
    default:
      throw InputError(concat(dataset.prefix().string(),
                              ".idx: expected tokens of dtype code 8 (uint16) or 4 (int32), found ",
                              static_cast<int>(dataset.token_type())));
  }
}

[[noreturn]] void throw_foreign_token(const IndexedDataset& dataset, int64_t document,
                                      std::span<const int64_t> tokens, int64_t last) {
  const auto is_foreign = [last](int64_t token) { return token < 0 || token > last; };
  throw InputError(concat(
      dataset.prefix().string(), ".bin: is damaged: document ", document, " has the token id ",
      *std::find_if(tokens.begin(), tokens.end(), is_foreign), ", expected 0 to ", last));
}

[[noreturn]] void throw_damaged_spans(const IndexedDataset& dataset, int64_t document) {
  throw InputError(concat(dataset.prefix().string(), ".spans: is damaged: the spans of document ",
                          document, " are not in order inside the document"));
}

/// Writes the labels of one document, whose tokens stand at `tokens`; returns how many there are.
int64_t supervise(const IndexedDataset& dataset, const SpanTable& supervision, int64_t document,
                  std::span<const int64_t> tokens, int64_t* labels, float* loss_weights) {
  const int64_t length = static_cast<int64_t>(tokens.size());
  const int64_t num_spans = static_cast<int64_t>(supervision.spans.size() / 2);
  const int64_t first = supervision.offsets[static_cast<size_t>(document)];
  const int64_t last = supervision.offsets[static_cast<size_t>(document) + 1];
  if (first < 0 || first > last || last > num_spans) throw_damaged_spans(dataset, document);
  int64_t num_supervised = 0;
  int64_t previous_end = 0;
  for (int64_t i = first; i < last; ++i) {
    const int64_t begin = supervision.spans[static_cast<size_t>(2 * i)];
    const int64_t end = supervision.spans[static_cast<size_t>(2 * i + 1)];
    if (begin < previous_end || end < begin || end > length) throw_damaged_spans(dataset, document);
    previous_end = end;
    const int64_t target =
        std::max<int64_t>(begin, 1);  // nothing predicts a document's first token
    if (end <= target) continue;
    std::copy(tokens.data() + target, tokens.data() + end, labels + target - 1);
    std::fill(loss_weights + target - 1, loss_weights + end - 1, 1.0f);
    num_supervised += end - target;
  }
  return num_supervised;
}

}  // namespace

template <class Id>
PackedCounts gather_pack(const IndexedDataset& dataset, const SpanTable& supervision,
                         std::span<const Id> documents, int64_t vocab_size, int64_t pad_id,
                         const PackedBatchView& out) {
  const int64_t capacity = static_cast<int64_t>(out.tokens.size());
  assert(out.labels.size() == out.tokens.size() && out.loss_weights.size() == out.tokens.size());
  assert(out.position_ids.size() == out.tokens.size());
  assert(out.document_ids.size() == out.tokens.size());
  assert(out.cu_seqlens.size() >= documents.size() + 2);
  assert(supervision.offsets.size() == static_cast<size_t>(dataset.num_documents()) + 1);
  assert(vocab_size >= 1);
  constexpr int64_t largest_id = std::numeric_limits<int32_t>::max();
  const uint32_t last_id = static_cast<uint32_t>(std::min(vocab_size - 1, largest_id));

  PackedCounts counts;
  int64_t begin = 0;
  const auto close_document = [&](int64_t length) {
    std::iota(out.position_ids.data() + begin, out.position_ids.data() + begin + length,
              int64_t{0});
    std::fill_n(out.document_ids.data() + begin, length,
                static_cast<int32_t>(counts.num_documents));
    begin += length;
    out.cu_seqlens[static_cast<size_t>(++counts.num_documents)] = static_cast<int32_t>(begin);
    counts.max_seqlen = std::max(counts.max_seqlen, length);
  };

  out.cu_seqlens[0] = 0;
  std::fill(out.labels.begin(), out.labels.end(), no_label);
  std::fill(out.loss_weights.begin(), out.loss_weights.end(), 0.0f);
  for (const Id idx : documents) {
    const DocumentView document = dataset.document(idx);
    if (document.length > capacity - begin) {
      throw InputError(concat(dataset.prefix().string(), ": the documents of this pack exceed its ",
                              capacity, " tokens: the pack index was built for other documents"));
    }
    const std::span<int64_t> tokens =
        out.tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(document.length));
    if (!copy_tokens(dataset, document, last_id, tokens.data())) {
      throw_foreign_token(dataset, idx, tokens, last_id);
    }
    counts.num_supervised += supervise(dataset, supervision, idx, tokens, out.labels.data() + begin,
                                       out.loss_weights.data() + begin);
    close_document(document.length);
  }
  if (begin < capacity) {
    std::fill(out.tokens.begin() + begin, out.tokens.end(), pad_id);
    close_document(capacity - begin);
  }
  std::fill(out.cu_seqlens.begin() + counts.num_documents + 1, out.cu_seqlens.end(),
            static_cast<int32_t>(capacity));
  return counts;
}

template PackedCounts gather_pack(const IndexedDataset&, const SpanTable&, std::span<const int32_t>,
                                  int64_t, int64_t, const PackedBatchView&);
template PackedCounts gather_pack(const IndexedDataset&, const SpanTable&, std::span<const int64_t>,
                                  int64_t, int64_t, const PackedBatchView&);

}  // namespace dsm
