#include "core/span_table.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/checked_size.h"
#include "core/error.h"
#include "core/load.h"
#include "core/sidecar_header.h"

namespace dsm {
namespace {

constexpr size_t header_bytes = 64;
constexpr size_t zeros_begin = 40;
constexpr int64_t unknown_length = std::numeric_limits<int32_t>::max();

}  // namespace

SpanTableView SpanTableView::parse(std::span<const std::byte> content, std::filesystem::path path) {
  SpanTableView view(std::move(path));
  const std::string file = view.path_.string();
  check_sidecar_header(content, file, {"DSMSPANS", "span table", header_bytes});
  const std::byte* header = content.data();
  check_zeros(content.subspan(12, 4), 12, file);
  check_zeros(content.subspan(zeros_begin, header_bytes - zeros_begin), zeros_begin, file);
  const uint64_t documents = load<uint64_t>(header + 16);
  const uint64_t spans = load<uint64_t>(header + 24);
  const uint64_t supervised = load<uint64_t>(header + 32);
  check_size(content.size(),
             CheckedSize(header_bytes) +
                 CheckedSize(8) * (CheckedSize(documents) + CheckedSize(1)) +
                 CheckedSize(8) * CheckedSize(spans),
             file);
  view.num_documents_ = static_cast<int64_t>(documents);
  view.num_spans_ = static_cast<int64_t>(spans);
  view.num_supervised_ = static_cast<int64_t>(supervised);
  view.offsets_ = header + header_bytes;
  view.spans_ = view.offsets_ + 8 * (view.num_documents_ + 1);
  check_offset_ends(view.offsets_, view.num_documents_, view.num_spans_, "spans", file);
  if (view.num_supervised_ < 0) {
    throw InputError(
        concat(file, ": expected fewer than 2^63 supervised tokens, found ", supervised));
  }
  return view;
}

SpanTableView::SpanTableView(std::filesystem::path path) : path_(std::move(path)) {}

SpanTableView::Slice SpanTableView::document(int64_t idx) const {
  if (idx < 0 || idx >= num_documents_) {
    throw InputError(
        concat(path_.string(), ": has ", num_documents_, " documents, asked for document ", idx));
  }
  const Slice found = slice(idx);
  count_supervised(idx, found, unknown_length);
  return found;
}

void SpanTableView::check(std::span<const int32_t> lengths) const {
  if (lengths.size() != static_cast<size_t>(num_documents_)) {
    throw InputError(concat(path_.string(), ": expected the spans of ", lengths.size(),
                            " documents, found ", num_documents_));
  }
  int64_t supervised = 0;
  for (int64_t d = 0; d < num_documents_; ++d) {
    supervised += count_supervised(d, slice(d), lengths[static_cast<size_t>(d)]);
  }
  if (supervised != num_supervised_) {
    throw InputError(concat(path_.string(), ": expected ", num_supervised_,
                            " supervised tokens from its header, found ", supervised));
  }
}

SpanTableView::Slice SpanTableView::slice(int64_t idx) const {
  const Slice found{offset(idx), offset(idx + 1)};
  if (found.first < 0 || found.first > found.last || found.last > num_spans_) {
    throw InputError(concat(path_.string(), ": is damaged: document ", idx,
                            ": expected offsets that rise from 0 to ", num_spans_, ", found ",
                            found.first, " and ", found.last));
  }
  return found;
}

/// The labels in the document's spans, once they rise inside [0, length].
int64_t SpanTableView::count_supervised(int64_t idx, Slice slice, int64_t length) const {
  int64_t previous_end = 0;
  int64_t supervised = 0;
  for (int64_t i = slice.first; i < slice.last; ++i) {
    const int64_t begin = load_entry<int32_t>(spans_, 2 * i);
    const int64_t end = load_entry<int32_t>(spans_, 2 * i + 1);
    if (begin < previous_end || end <= begin || end > length) {
      throw InputError(concat(path_.string(), ": is damaged: document ", idx,
                              ": expected spans that rise from ", previous_end, " to at most ",
                              length, ", found ", begin, " to ", end));
    }
    // Nothing predicts a document's first token.
    supervised += end - std::max<int64_t>(begin, 1);
    previous_end = end;
  }
  return supervised;
}

int64_t SpanTableView::offset(int64_t idx) const { return load_entry<int64_t>(offsets_, idx); }

}  // namespace dsm
