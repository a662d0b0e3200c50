#include "core/indexed_dataset.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/error.h"
#include "core/load.h"

namespace dsm {
namespace {

constexpr size_t table_distance = 16;    // documents ahead: the document table
constexpr size_t sequence_distance = 8;  // documents ahead: the sequences' tables
constexpr size_t token_distance = 4;     // documents ahead: the first tokens
constexpr int64_t cache_line = 64;

std::filesystem::path with_suffix(const std::filesystem::path& prefix, const char* suffix) {
  return prefix.string() + suffix;
}

/// The largest id, a negative one being larger than all others.
template <class Token>
uint64_t largest_id(const DocumentView& document) {
  using Unsigned = std::make_unsigned_t<Token>;
  Unsigned largest = 0;
  for (int64_t i = 0; i < document.length; ++i) {
    largest = std::max(largest, load_entry<Unsigned>(document.data, i));
  }
  return largest;
}

template <class Token>
void check_ids(const IndexedDataset& dataset, int64_t vocab_size) {
  using Unsigned = std::make_unsigned_t<Token>;
  constexpr uint64_t largest_token = static_cast<uint64_t>(std::numeric_limits<Token>::max());
  const uint64_t last = std::min(static_cast<uint64_t>(vocab_size) - 1, largest_token);
  for (int64_t d = 0; d < dataset.num_documents(); ++d) {
    const DocumentView document = dataset.document(d);
    if (largest_id<Token>(document) <= last) continue;
    int64_t i = 0;
    while (load_entry<Unsigned>(document.data, i) <= last) ++i;
    throw InputError(concat(with_suffix(dataset.prefix(), ".bin").string(),
                            ": is damaged: document ", d, " has the token id ",
                            static_cast<int64_t>(load_entry<Token>(document.data, i)),
                            ", expected 0 to ", vocab_size - 1));
  }
}

}  // namespace

IndexedDataset::IndexedDataset(const std::filesystem::path& prefix)
    : index_file_(with_suffix(prefix, ".idx")),
      tokens_(with_suffix(prefix, ".bin")),
      index_(IndexView::parse({index_file_.data(), index_file_.size()}, tokens_.size(), prefix)) {}

std::vector<DocumentView> IndexedDataset::documents(std::span<const int64_t> indices) const {
  std::vector<DocumentView> views;
  views.reserve(indices.size());
  const size_t count = indices.size();
  for (size_t i = 0; i < std::min(table_distance, count); ++i) {
    index_.prefetch_document_table(indices[i]);
  }
  for (size_t i = 0; i < std::min(sequence_distance, count); ++i) {
    index_.prefetch_sequence_tables(indices[i]);
  }
  for (size_t i = 0; i < count; ++i) {
    if (i + table_distance < count) index_.prefetch_document_table(indices[i + table_distance]);
    if (i + sequence_distance < count) {
      index_.prefetch_sequence_tables(indices[i + sequence_distance]);
    }
    views.push_back(document(indices[i]));
  }
  return views;
}

void IndexedDataset::check_token_ids(int64_t vocab_size) const {
  assert(vocab_size >= 1);
  switch (token_type()) {
    case TokenType::uint8:
      return check_ids<uint8_t>(*this, vocab_size);
    case TokenType::int8:
      return check_ids<int8_t>(*this, vocab_size);
    case TokenType::int16:
      return check_ids<int16_t>(*this, vocab_size);
    case TokenType::uint16:
      return check_ids<uint16_t>(*this, vocab_size);
    case TokenType::int32:
      return check_ids<int32_t>(*this, vocab_size);
    case TokenType::int64:
      return check_ids<int64_t>(*this, vocab_size);
    case TokenType::float32:
    case TokenType::float64:
      throw InputError(concat(with_suffix(prefix(), ".idx").string(),
                              ": expected token ids of an integer dtype, found dtype code ",
                              static_cast<int>(token_type())));
  }
}

void copy_documents(std::span<const DocumentView> documents, int64_t token_bytes, std::byte* out) {
  for (size_t i = 0; i < documents.size(); ++i) {
    if (i + token_distance < documents.size()) {
      const DocumentView& ahead = documents[i + token_distance];
      // The hardware follows from the second line on.
      const int64_t bytes = std::min(ahead.length * token_bytes, 4 * cache_line);
      for (int64_t line = 0; line < bytes; line += cache_line) {
        __builtin_prefetch(ahead.data + line);
      }
    }
    const size_t bytes = static_cast<size_t>(documents[i].length * token_bytes);
    if (bytes == 0) continue;
    std::memcpy(out, documents[i].data, bytes);
    out += bytes;
  }
}

}  // namespace dsm
