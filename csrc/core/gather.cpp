#include "core/gather.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "core/parallel.h"
#include "core/vector_loops.h"

namespace dsm {
namespace {

constexpr int64_t cache_line_bytes = 64;
constexpr int64_t packs_worth_a_thread = 16;

/// One gather: the buffers, and how far they are filled.
template <class Index>
class Assembly {
 public:
  Assembly(const GatherSource& source, const PackedBatchView<Index>& out)
      : source_(source),
        out_(out),
        last_id_(static_cast<uint32_t>(
            std::min<int64_t>(source.vocab_size - 1, std::numeric_limits<int32_t>::max()))) {
    out.cu_seqlens[0] = 0;
  }

  /// Appends a part of the document at `view`.
  template <class Id>
  void add(const PackPiece<Id>& piece, const DocumentView& view) {
    if (!copy_tokens(view, piece.begin, piece.length, out_.tokens.data() + used_)) {
      throw_foreign_token(piece.document, view);
    }
    supervise(piece.document, piece.begin, piece.length, view);
    pad(used_ + piece.length, piece.slots - piece.length);
    close_document(piece.slots);
  }

  /// Fills what is left with a document of padding.
  PackedCounts finish() {
    const int64_t capacity = static_cast<int64_t>(out_.tokens.size());
    if (used_ < capacity) {
      const int64_t rest = capacity - used_;
      pad(used_, rest);
      close_document(rest);
    }
    std::fill(out_.cu_seqlens.begin() + counts_.num_documents + 1, out_.cu_seqlens.end(),
              static_cast<int32_t>(capacity));
    return counts_;
  }

 private:
  bool copy_tokens(const DocumentView& view, int64_t begin, int64_t length, Index* out) const {
    switch (source_.dataset.token_type()) {
      case TokenType::uint16:
        return widen_tokens(reinterpret_cast<const uint16_t*>(view.data) + begin, length, last_id_,
                            out);
      case TokenType::int32:
        return widen_tokens(reinterpret_cast<const int32_t*>(view.data) + begin, length, last_id_,
                            out);
      default:
        throw InputError(
            concat(source_.dataset.prefix().string(),
                   ".idx: expected tokens of dtype code 8 (uint16) or 4 (int32), found ",
                   static_cast<int>(source_.dataset.token_type())));
    }
  }

  /// Writes labels and loss weights of the slots a piece's tokens take.
  void supervise(int64_t document, int64_t begin, int64_t length, const DocumentView& view) {
    const SpanTable& table = source_.supervision;
    const int64_t num_spans = static_cast<int64_t>(table.spans.size() / 2);
    const int64_t first = table.offsets[static_cast<size_t>(document)];
    const int64_t last = table.offsets[static_cast<size_t>(document) + 1];
    if (first < 0 || first > last || last > num_spans) throw_damaged_spans(document);
    // Where the document goes on in the next pack, its next token is known: no label is lost.
    const int64_t end = begin + length;
    const int64_t target_end = source_.layout.splits ? std::min(end + 1, view.length) : end;
    int64_t unlabelled = begin;  // first position of the document without a decision
    int64_t previous_end = 0;
    for (int64_t i = first; i < last; ++i) {
      const int64_t span_begin = table.spans[static_cast<size_t>(2 * i)];
      const int64_t span_end = table.spans[static_cast<size_t>(2 * i + 1)];
      if (span_begin < previous_end || span_end < span_begin || span_end > view.length) {
        throw_damaged_spans(document);
      }
      previous_end = span_end;
      const int64_t target = std::max(span_begin, begin + 1);  // nothing predicts the first token
      const int64_t stop = std::min(span_end, target_end);
      if (stop <= target) continue;
      leave_out(unlabelled - begin, target - 1 - unlabelled);
      label(document, begin, target, stop, view);
      unlabelled = stop - 1;
    }
    leave_out(unlabelled - begin, end - unlabelled);
  }

  /// Labels the positions before the tokens [target, stop) of a piece that begins at `begin`.
  void label(int64_t document, int64_t begin, int64_t target, int64_t stop,
             const DocumentView& view) {
    const int64_t slot = used_ + target - 1 - begin;
    const int64_t count = stop - target;
    if (!copy_tokens(view, target, count, out_.labels.data() + slot)) {
      throw_foreign_token(document, view);
    }
    fill_equal(out_.loss_weights.data() + slot, count, 1.0f);
    counts_.num_supervised += count;
  }

  void leave_out(int64_t position, int64_t count) {
    fill_equal(out_.labels.data() + used_ + position, count, static_cast<Index>(no_label));
    std::memset(out_.loss_weights.data() + used_ + position, 0,
                static_cast<size_t>(count) * sizeof(float));
  }

  void pad(int64_t slot, int64_t count) {
    if (count == 0) return;
    fill_equal(out_.tokens.data() + slot, count, static_cast<Index>(source_.pad_id));
    leave_out(slot - used_, count);
  }

  void close_document(int64_t slots) {
    fill_ascending(out_.position_ids.data() + used_, slots, 0);
    fill_equal(out_.document_ids.data() + used_, slots,
               static_cast<int32_t>(counts_.num_documents));
    used_ += slots;
    out_.cu_seqlens[static_cast<size_t>(++counts_.num_documents)] = static_cast<int32_t>(used_);
    counts_.max_seqlen = std::max(counts_.max_seqlen, slots);
  }

  [[noreturn]] void throw_foreign_token(int64_t document, const DocumentView& view) const {
    const auto token_at = [&](int64_t i) -> int64_t {
      return source_.dataset.token_type() == TokenType::uint16
                 ? reinterpret_cast<const uint16_t*>(view.data)[i]
                 : reinterpret_cast<const int32_t*>(view.data)[i];
    };
    int64_t i = 0;
    while (i + 1 < view.length && token_at(i) >= 0 && token_at(i) <= int64_t{last_id_}) ++i;
    throw InputError(concat(source_.dataset.prefix().string(), ".bin: is damaged: document ",
                            document, " has the token id ", token_at(i), ", expected 0 to ",
                            last_id_));
  }

  [[noreturn]] void throw_damaged_spans(int64_t document) const {
    throw InputError(concat(source_.dataset.prefix().string(),
                            ".spans: is damaged: the spans of document ", document,
                            " are not in order inside the document"));
  }

  const GatherSource& source_;
  const PackedBatchView<Index>& out_;
  uint32_t last_id_;
  int64_t used_ = 0;
  PackedCounts counts_;
};

}  // namespace

template <class Id, class Index>
PackedCounts gather_pack(const GatherSource& source, const PackView<Id>& pack,
                         const PackedBatchView<Index>& out) {
  assert(static_cast<int64_t>(out.tokens.size()) == source.layout.capacity);
  assert(out.labels.size() == out.tokens.size() && out.loss_weights.size() == out.tokens.size());
  assert(out.position_ids.size() == out.tokens.size());
  assert(out.document_ids.size() == out.tokens.size());
  assert(out.cu_seqlens.size() >= pack.documents.size() + 2);
  assert(source.supervision.offsets.size() ==
         static_cast<size_t>(source.dataset.num_documents()) + 1);
  assert(source.vocab_size >= 1);
  Assembly<Index> assembly(source, out);
  DocumentView view{};
  const auto length_of = [&](Id document) {
    view = source.dataset.document(document);
    return view.length;
  };
  try {
    for_each_piece(source.layout, pack, length_of,
                   [&](const PackPiece<Id>& piece) { assembly.add(piece, view); });
  } catch (const UnfitPackError& error) {
    throw InputError(concat(source.dataset.prefix().string(), ": ", error.what()));
  }
  return assembly.finish();
}

template <class Id>
void prefetch_entries(const GatherSource& source, const PackView<Id>& pack) noexcept {
  for (const Id document : pack.documents) {
    if (document < 0 || document >= source.dataset.num_documents()) continue;
    source.dataset.prefetch_entry(document);
    __builtin_prefetch(source.supervision.offsets.data() + document);
  }
}

template <class Id>
void prefetch_tokens(const GatherSource& source, const PackView<Id>& pack) noexcept {
  const int64_t bytes_per_token = token_bytes(source.dataset.token_type());
  const int64_t num_spans = static_cast<int64_t>(source.supervision.spans.size() / 2);
  int64_t room = source.layout.capacity;
  int64_t begin = std::max<int64_t>(pack.begin, 0);
  try {
    for (const Id document : pack.documents) {
      const DocumentView view = source.dataset.document(document);
      const int64_t end = std::min(view.length, begin + room);
      const std::byte* const end_byte = view.data + end * bytes_per_token;
      for (const std::byte* line = view.data + begin * bytes_per_token; line < end_byte;
           line += cache_line_bytes) {
        __builtin_prefetch(line);
      }
      const int64_t first_span = source.supervision.offsets[static_cast<size_t>(document)];
      if (first_span >= 0 && first_span < num_spans) {
        __builtin_prefetch(source.supervision.spans.data() + 2 * first_span);
      }
      room -= end - begin;
      begin = 0;
    }
  } catch (const std::exception&) {  // said when the pack is gathered
  }
}

template <class Id, class Index>
std::vector<PackedCounts> gather_packs(const GatherSource& source,
                                       std::span<const PackView<Id>> packs,
                                       std::span<const PackedBatchView<Index>> outs, int threads) {
  assert(packs.size() == outs.size());
  std::vector<PackedCounts> counts(packs.size());
  const int64_t n = static_cast<int64_t>(packs.size());
  // A thread that gathers only a few packs takes longer to start than it saves.
  const int64_t parts = std::clamp<int64_t>(n / packs_worth_a_thread, 1, threads);
  for_each_part(static_cast<int>(parts), parts, [&](int64_t part) {
    const auto last = static_cast<size_t>(part_begin(n, parts, part + 1));
    for (auto i = static_cast<size_t>(part_begin(n, parts, part)); i < last; ++i) {
      if (i + entries_ahead < last) prefetch_entries(source, packs[i + entries_ahead]);
      if (i + tokens_ahead < last) prefetch_tokens(source, packs[i + tokens_ahead]);
      counts[i] = gather_pack(source, packs[i], outs[i]);
    }
  });
  return counts;
}

#define DSM_INSTANTIATE(Id, Index)                                               \
  template PackedCounts gather_pack(const GatherSource&, const PackView<Id>&,    \
                                    const PackedBatchView<Index>&);              \
  template std::vector<PackedCounts> gather_packs(const GatherSource&,           \
                                                  std::span<const PackView<Id>>, \
                                                  std::span<const PackedBatchView<Index>>, int);
DSM_INSTANTIATE(int32_t, int32_t)
DSM_INSTANTIATE(int32_t, int64_t)
DSM_INSTANTIATE(int64_t, int32_t)
DSM_INSTANTIATE(int64_t, int64_t)
#undef DSM_INSTANTIATE
template void prefetch_entries(const GatherSource&, const PackView<int32_t>&) noexcept;
template void prefetch_entries(const GatherSource&, const PackView<int64_t>&) noexcept;
template void prefetch_tokens(const GatherSource&, const PackView<int32_t>&) noexcept;
template void prefetch_tokens(const GatherSource&, const PackView<int64_t>&) noexcept;

}  // namespace dsm
