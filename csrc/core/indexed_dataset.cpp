#include "core/indexed_dataset.h"

#include <cstring>
#include <string_view>

#include "core/checked_size.h"
#include "core/error.h"

namespace dsm {
namespace {

constexpr std::string_view index_magic("MMIDIDX\0\0", 9);
constexpr uint64_t index_version = 1;
constexpr uint64_t header_bytes = 34;  // magic 9, version 8, dtype 1, two counts of 8

/// The tables of an .idx begin at byte 34, so nothing in it is aligned.
template <class T>
T load(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

std::filesystem::path with_suffix(const std::filesystem::path& prefix, const char* suffix) {
  return prefix.string() + suffix;
}

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

IndexedDataset::IndexedDataset(const std::filesystem::path& prefix)
    : prefix_(prefix), index_(with_suffix(prefix, ".idx")), tokens_(with_suffix(prefix, ".bin")) {
  parse_index();
  check_ends();
}

void IndexedDataset::parse_index() {
  const std::string file = index_.path().string();
  if (index_.size() < header_bytes) {
    throw InputError(concat(file, ": is no Megatron index: expected at least ", header_bytes,
                            " bytes, found ", index_.size()));
  }
  const std::byte* header = index_.data();
  if (std::memcmp(header, index_magic.data(), index_magic.size()) != 0) {
    throw InputError(concat(file, ": is no Megatron index: expected the magic MMIDIDX"));
  }
  const uint64_t version = load<uint64_t>(header + 9);
  if (version != index_version) {
    throw InputError(concat(file, ": expected version ", index_version, ", found ", version));
  }
  const int code = load<uint8_t>(header + 17);
  token_type_ = static_cast<TokenType>(code);
  token_bytes_ = token_bytes(token_type_);
  if (token_bytes_ == 0) {
    throw InputError(concat(file, ": expected a dtype code of 1 to 8, found ", code));
  }
  const uint64_t sequences = load<uint64_t>(header + 18);
  const uint64_t document_ends = load<uint64_t>(header + 26);
  const CheckedSize expected = CheckedSize(header_bytes) +
                               CheckedSize(12) * CheckedSize(sequences) +
                               CheckedSize(8) * CheckedSize(document_ends);
  // A multimodal index ends with one mode byte a sequence, which nothing here reads.
  const CheckedSize with_modes = expected + CheckedSize(sequences);
  if (!expected.equals(index_.size()) && !with_modes.equals(index_.size())) {
    throw InputError(concat(file, ": its header counts ", sequences, " sequences and ",
                            document_ends, " document ends: expected ",
                            expected.overflowed() ? "more than 2^64" : concat(expected.value()),
                            " bytes, found ", index_.size()));
  }
  if (!(CheckedSize(sequences) + CheckedSize(1)).equals(document_ends)) {
    throw InputError(concat(file, ": expected one sequence a document, found ", sequences,
                            " sequences and ", document_ends, " document ends"));
  }
  num_documents_ = static_cast<int64_t>(sequences);
  lengths_ = header + header_bytes;
  pointers_ = lengths_ + 4 * num_documents_;
  documents_ = pointers_ + 8 * num_documents_;
}

void IndexedDataset::check_ends() const {
  const std::string file = index_.path().string();
  const int64_t first_end = load<int64_t>(documents_);
  const int64_t last_end = load<int64_t>(documents_ + 8 * num_documents_);
  if (first_end != 0 || last_end != num_documents_) {
    throw InputError(concat(file, ": expected document ends from 0 to ", num_documents_, ", found ",
                            first_end, " to ", last_end));
  }
  uint64_t expected = 0;
  if (num_documents_ > 0) {
    if (pointer(0) != 0) {
      throw InputError(concat(file, ": expected the first document at byte 0, found ", pointer(0)));
    }
    const int64_t last_length = length(num_documents_ - 1);
    const int64_t last_pointer = pointer(num_documents_ - 1);
    if (last_length < 0 || last_pointer < 0) {
      throw InputError(concat(file, ": expected the last document's length and byte offset to be ",
                              "at least 0, found ", last_length, " and ", last_pointer));
    }
    expected = static_cast<uint64_t>(last_pointer) +
               static_cast<uint64_t>(last_length) * static_cast<uint64_t>(token_bytes_);
  }
  if (expected != tokens_.size()) {
    throw InputError(concat(tokens_.path().string(), ": expected ", expected, " bytes from ", file,
                            ", found ", tokens_.size()));
  }
}

DocumentView IndexedDataset::document(int64_t idx) const {
  if (idx < 0 || idx >= num_documents_) {
    throw InputError(
        concat(prefix_.string(), ": has ", num_documents_, " documents, asked for document ", idx));
  }
  const int64_t tokens = length(idx);
  const int64_t begin = pointer(idx);
  const int64_t end =
      idx + 1 < num_documents_ ? pointer(idx + 1) : static_cast<int64_t>(tokens_.size());
  // Documents stand end to end; together with end <= size this keeps the view in the mapping.
  if (begin < 0 || tokens < 0 || end < begin || end - begin != tokens * token_bytes_ ||
      end > static_cast<int64_t>(tokens_.size()) || begin % token_bytes_ != 0) {
    throw InputError(concat(index_.path().string(), ": is damaged: document ", idx, " has ", tokens,
                            " tokens from byte ", begin, " to byte ", end));
  }
  return {tokens_.data() + begin, tokens};
}

int64_t IndexedDataset::length(int64_t idx) const { return load<int32_t>(lengths_ + 4 * idx); }

int64_t IndexedDataset::pointer(int64_t idx) const { return load<int64_t>(pointers_ + 8 * idx); }

}  // namespace dsm
