#include "core/index_view.h"

#include <cassert>
#include <cstring>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

#include "core/checked_size.h"
#include "core/error.h"
#include "core/load.h"

namespace dsm {
namespace {

constexpr std::string_view index_magic("MMIDIDX\0\0", 9);
constexpr uint64_t index_version = 1;
constexpr uint64_t header_bytes = 34;  // magic 9, version 8, dtype 1, two counts of 8

}  // namespace

int64_t token_bytes(TokenType type) {
  switch (type) {
    case TokenType::uint8:
    case TokenType::int8:
      return 1;
    case TokenType::int16:
    case TokenType::uint16:
      return 2;
    case TokenType::int32:
    case TokenType::float32:
      return 4;
    case TokenType::int64:
    case TokenType::float64:
      return 8;
  }
  return 0;
}

IndexView IndexView::parse(std::span<const std::byte> index, uint64_t bin_size,
                           std::filesystem::path prefix) {
  assert(bin_size <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max()));
  IndexView view(bin_size, std::move(prefix));
  view.read_header(index);
  view.check_ends();
  return view;
}

IndexView::IndexView(uint64_t bin_size, std::filesystem::path prefix)
    : prefix_(std::move(prefix)), bin_size_(bin_size) {}

void IndexView::read_header(std::span<const std::byte> index) {
  if (index.size() < header_bytes) {
    throw InputError(concat(index_name(), ": is no Megatron index: expected at least ",
                            header_bytes, " bytes, found ", index.size()));
  }
  const std::byte* header = index.data();
  if (std::memcmp(header, index_magic.data(), index_magic.size()) != 0) {
    throw InputError(
        concat(index_name(), ": is no Megatron index: expected the magic MMIDIDX, found another"));
  }
  const uint64_t version = load<uint64_t>(header + 9);
  if (version != index_version) {
    throw InputError(
        concat(index_name(), ": expected version ", index_version, ", found ", version));
  }
  const int code = load<uint8_t>(header + 17);
  token_type_ = static_cast<TokenType>(code);
  token_bytes_ = token_bytes(token_type_);
  if (token_bytes_ == 0) {
    throw InputError(concat(index_name(), ": expected a dtype code of 1 to 8, found ", code));
  }
  const uint64_t sequences = load<uint64_t>(header + 18);
  const uint64_t document_ends = load<uint64_t>(header + 26);
  const CheckedSize expected = CheckedSize(header_bytes) +
                               CheckedSize(12) * CheckedSize(sequences) +
                               CheckedSize(8) * CheckedSize(document_ends);
  const CheckedSize with_modes = expected + CheckedSize(sequences);
  if (!expected.equals(index.size()) && !with_modes.equals(index.size())) {
    throw InputError(concat(index_name(), ": its header counts ", sequences, " sequences and ",
                            document_ends, " document ends: expected ",
                            expected.overflowed() ? "more than 2^64" : concat(expected.value()),
                            " bytes, found ", index.size()));
  }
  if (document_ends == 0) {
    throw InputError(concat(index_name(), ": expected at least 1 document end, found 0"));
  }
  has_modes_ = !expected.equals(index.size());
  num_sequences_ = static_cast<int64_t>(sequences);
  num_documents_ = static_cast<int64_t>(document_ends) - 1;
  lengths_ = header + header_bytes;
  pointers_ = lengths_ + 4 * num_sequences_;
  documents_ = pointers_ + 8 * num_sequences_;
}

void IndexView::check_ends() const {
  const int64_t first_end = first_sequence(0);
  const int64_t last_end = first_sequence(num_documents_);
  if (first_end != 0 || last_end != num_sequences_) {
    throw InputError(concat(index_name(), ": expected document ends from 0 to ", num_sequences_,
                            ", found ", first_end, " to ", last_end));
  }
  uint64_t expected = 0;
  if (num_sequences_ > 0) {
    if (begin(0) != 0) {
      throw InputError(
          concat(index_name(), ": expected the first sequence at byte 0, found ", begin(0)));
    }
    const int64_t last_length = length(num_sequences_ - 1);
    const int64_t last_begin = begin(num_sequences_ - 1);
    if (last_length < 0 || last_begin < 0) {
      throw InputError(concat(index_name(), ": expected the last sequence's length and byte offset",
                              " to be at least 0, found ", last_length, " and ", last_begin));
    }
    expected = static_cast<uint64_t>(last_begin) +
               static_cast<uint64_t>(last_length) * static_cast<uint64_t>(token_bytes_);
  }
  if (expected != bin_size_) {
    throw InputError(concat(prefix_.string(), ".bin: expected ", expected, " bytes from ",
                            index_name(), ", found ", bin_size_));
  }
}

TokenExtent IndexView::document(int64_t idx) const {
  if (idx < 0 || idx >= num_documents_) {
    throw InputError(
        concat(prefix_.string(), ": has ", num_documents_, " documents, asked for document ", idx));
  }
  const int64_t first = first_sequence(idx);
  const int64_t last = first_sequence(idx + 1);
  if (first < 0 || first > last || last > num_sequences_) throw_damaged_table(idx);
  return extent(first, last, "document", idx);
}

TokenExtent IndexView::sequence(int64_t idx) const {
  if (idx < 0 || idx >= num_sequences_) {
    throw InputError(
        concat(prefix_.string(), ": has ", num_sequences_, " sequences, asked for sequence ", idx));
  }
  return extent(idx, idx + 1, "sequence", idx);
}

TokenExtent IndexView::extent(int64_t first, int64_t last, const char* what, int64_t idx) const {
  const uint64_t width = static_cast<uint64_t>(token_bytes_);
  const int64_t offset = begin(first);
  // Unsigned, so that what is read cannot overflow: a negative number is one beyond the .bin.
  uint64_t end = static_cast<uint64_t>(offset);
  bool sound = end <= bin_size_ && end % width == 0;
  int64_t tokens = 0;
  for (int64_t i = first; sound && i < last; ++i) {
    const int64_t sequence_tokens = length(i);
    const uint64_t next = static_cast<uint64_t>(begin(i + 1));
    sound = sequence_tokens >= 0 && next <= bin_size_ &&
            next == end + static_cast<uint64_t>(sequence_tokens) * width;
    tokens += sequence_tokens;
    end = next;
  }
  if (!sound) {
    throw InputError(concat(index_name(), ": is damaged: ", what, " ", idx, ", sequences ", first,
                            " to ", last, ": expected its tokens end to end from byte ", offset,
                            " and inside the ", bin_size_, " bytes of the .bin, found ", tokens,
                            " tokens up to byte ", static_cast<int64_t>(end)));
  }
  return {offset, tokens};
}

void IndexView::prefetch_document_table(int64_t idx) const {
  if (idx < 0 || idx >= num_documents_) return;
  __builtin_prefetch(documents_ + 8 * idx);
}

void IndexView::prefetch_sequence_tables(int64_t idx) const {
  if (idx < 0 || idx >= num_documents_) return;
  const int64_t first = first_sequence(idx);
  if (first < 0 || first >= num_sequences_) return;
  __builtin_prefetch(pointers_ + 8 * first);
  __builtin_prefetch(lengths_ + 4 * first);
}

void IndexView::document_lengths(std::span<int32_t> out) const {
  assert(out.size() == static_cast<size_t>(num_documents_));
  if (documents_are_sequences()) {
    int32_t sign = 0;
    for (int64_t i = 0; i < num_documents_; ++i) sign |= out[static_cast<size_t>(i)] = length(i);
    if (sign >= 0) return;
  }
  int64_t first = 0;
  for (int64_t d = 0; d < num_documents_; ++d) {
    const int64_t last = first_sequence(d + 1);
    if (first > last || last > num_sequences_) throw_damaged_table(d);
    int64_t tokens = 0;
    for (int64_t i = first; i < last; ++i) {
      if (length(i) < 0) {
        throw InputError(concat(index_name(), ": is damaged: sequence ", i,
                                ": expected a length of at least 0, found ", length(i)));
      }
      tokens += length(i);
    }
    if (tokens > std::numeric_limits<int32_t>::max()) {
      throw InputError(concat(index_name(), ": document ", d, ": expected at most 2^31 - 1 tokens,",
                              " found ", tokens, ": split it"));
    }
    out[static_cast<size_t>(d)] = static_cast<int32_t>(tokens);
    first = last;
  }
}

void IndexView::check_tables() const {
  for (int64_t i = 0; i < num_sequences_; ++i) extent(i, i + 1, "sequence", i);
  for (int64_t d = 0; d < num_documents_; ++d) {
    const int64_t last = first_sequence(d + 1);
    if (first_sequence(d) > last || last > num_sequences_) throw_damaged_table(d);
  }
}

/// Whether every document is the one sequence of its number.
bool IndexView::documents_are_sequences() const {
  if (num_documents_ != num_sequences_) return false;
  int64_t differs = 0;
  for (int64_t d = 0; d <= num_documents_; ++d) differs |= first_sequence(d) ^ d;
  return differs == 0;
}

void IndexView::throw_damaged_table(int64_t document) const {
  throw InputError(concat(index_name(), ": is damaged: document ", document,
                          ": expected document ends that rise from 0 to ", num_sequences_,
                          ", found ", first_sequence(document), " and ",
                          first_sequence(document + 1)));
}

int32_t IndexView::length(int64_t sequence) const {
  return load_entry<int32_t>(lengths_, sequence);
}

int64_t IndexView::begin(int64_t sequence) const {
  return sequence < num_sequences_ ? load_entry<int64_t>(pointers_, sequence)
                                   : static_cast<int64_t>(bin_size_);
}

int64_t IndexView::first_sequence(int64_t document) const {
  return load_entry<int64_t>(documents_, document);
}

}  // namespace dsm
