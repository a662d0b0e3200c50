#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

namespace dsm {

/// PREFIX.spans over bytes that the caller keeps alive: the supervised spans of every document as
/// CSR, each a [begin, end) of token positions inside its document.
///
/// `parse` checks in O(1): magic, version, zeroed rest of the header, the size equation, the ends
/// of the offsets. Every fault is an InputError that names the file, what was expected and found.
class SpanTableView {
 public:
  /// A document's spans are number `first` to `last` of all.
  struct Slice {
    int64_t first;
    int64_t last;
  };

  /// `path` only names the file in messages.
  static SpanTableView parse(std::span<const std::byte> content, std::filesystem::path path);

  int64_t num_documents() const { return num_documents_; }
  int64_t num_spans() const { return num_spans_; }

  /// Tokens that are some position's label, as the header says.
  int64_t num_supervised() const { return num_supervised_; }

  const std::byte* offsets() const { return offsets_; }  ///< int64 [num_documents + 1]
  const std::byte* spans() const { return spans_; }      ///< int32 [num_spans, 2]

  /// Throws InputError where idx is out of range or the document's spans do not rise.
  Slice document(int64_t idx) const;

  /// Checks every span against the documents' lengths, [num_documents], and the count of supervised
  /// tokens against the header's; O(num_documents + num_spans).
  void check(std::span<const int32_t> lengths) const;

 private:
  explicit SpanTableView(std::filesystem::path path);
  Slice slice(int64_t idx) const;
  int64_t count_supervised(int64_t idx, Slice slice, int64_t length) const;
  int64_t offset(int64_t idx) const;

  std::filesystem::path path_;
  int64_t num_documents_ = 0;
  int64_t num_spans_ = 0;
  int64_t num_supervised_ = 0;
  const std::byte* offsets_ = nullptr;
  const std::byte* spans_ = nullptr;
};

}  // namespace dsm
