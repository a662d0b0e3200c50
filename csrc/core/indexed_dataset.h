#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <vector>

#include "core/index_view.h"
#include "core/mapped_file.h"

namespace dsm {

/// One document's tokens inside the mapping.
struct DocumentView {
  const std::byte* data;
  int64_t length;  ///< tokens
};

/// PREFIX.bin and PREFIX.idx as megatron.core writes them, mapped. Opening costs O(1); what is
/// checked when is said at IndexView.
class IndexedDataset {
 public:
  explicit IndexedDataset(const std::filesystem::path& prefix);

  int64_t num_documents() const { return index_.num_documents(); }
  int64_t num_sequences() const { return index_.num_sequences(); }
  TokenType token_type() const { return index_.token_type(); }
  bool has_modes() const { return index_.has_modes(); }
  const std::filesystem::path& prefix() const { return index_.prefix(); }

  /// Throw InputError where idx is out of range or the index contradicts itself there.
  DocumentView document(int64_t idx) const { return view_of(index_.document(idx)); }
  DocumentView sequence(int64_t idx) const { return view_of(index_.sequence(idx)); }

  /// Asks the memory for what document(idx) will read of the index, and does not wait for it. Any
  /// idx is allowed.
  void prefetch_entry(int64_t idx) const { index_.prefetch_entry(idx); }

  /// `document` of each idx, faster than one by one where the index is not in the cache.
  std::vector<DocumentView> documents(std::span<const int64_t> indices) const;

  /// Tokens of each document into `out`, [num_documents]; throws as IndexView does.
  void document_lengths(std::span<int32_t> out) const { index_.document_lengths(out); }

  /// Checks every entry of the index, O(num_sequences + num_documents).
  void check_tables() const { index_.check_tables(); }

  /// Reads every token. Throws InputError that names the first document with an id outside
  /// [0, vocab_size), and where the tokens are no integers.
  void check_token_ids(int64_t vocab_size) const;

  /// The sequences' lengths as they lie in the file, int32 and not aligned. They are the documents'
  /// where every document is one sequence.
  const std::byte* lengths() const { return index_.sequence_lengths(); }

 private:
  DocumentView view_of(TokenExtent extent) const {
    return {tokens_.data() + extent.offset, extent.length};
  }

  MappedFile index_file_;
  MappedFile tokens_;
  IndexView index_;
};

/// Copies the documents one after the other to `out`, which has room for all of them.
void copy_documents(std::span<const DocumentView> documents, int64_t token_bytes, std::byte* out);

}  // namespace dsm
