#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

namespace dsm {

/// Megatron's dtype codes of the .idx header.
enum class TokenType : uint8_t {
  uint8 = 1,
  int8 = 2,
  int16 = 3,
  int32 = 4,
  int64 = 5,
  float64 = 6,
  float32 = 7,
  uint16 = 8,
};

int64_t token_bytes(TokenType type);

/// Where a run of tokens lies in the .bin.
struct TokenExtent {
  int64_t offset;  ///< bytes
  int64_t length;  ///< tokens
};

/// The tables of PREFIX.idx over bytes that the caller keeps alive. A document is the sequences
/// [table[d], table[d + 1]), which stand end to end in the .bin.
///
/// `parse` checks in O(1): magic, version, dtype code, the size equation of both files, the ends of
/// the tables. What it cannot see is checked where it is used. Every fault is an InputError that
/// names the file, what was expected and what was found.
class IndexView {
 public:
  /// `bin_size`: bytes of PREFIX.bin; `prefix` only names the files in messages.
  static IndexView parse(std::span<const std::byte> index, uint64_t bin_size,
                         std::filesystem::path prefix);

  int64_t num_documents() const { return num_documents_; }
  int64_t num_sequences() const { return num_sequences_; }
  TokenType token_type() const { return token_type_; }
  const std::filesystem::path& prefix() const { return prefix_; }

  /// Whether the index of a multimodal dataset names the mode of each sequence. Nothing reads them.
  bool has_modes() const { return has_modes_; }

  /// Throw InputError where idx is out of range or the index contradicts itself there.
  TokenExtent document(int64_t idx) const;
  TokenExtent sequence(int64_t idx) const;

  /// Starts to load all that `document(idx)` reads, where every document is one sequence, else what
  /// it reads first; any idx is allowed.
  void prefetch_entry(int64_t idx) const {
    if (idx < 0 || idx >= num_documents_) return;
    __builtin_prefetch(documents_ + 8 * idx);
    if (num_sequences_ != num_documents_) return;
    __builtin_prefetch(pointers_ + 8 * idx);
    __builtin_prefetch(lengths_ + 4 * idx);
  }

  /// Starts to load what `document(idx)` reads first, then what it reads next; any idx is allowed.
  void prefetch_document_table(int64_t idx) const;
  void prefetch_sequence_tables(int64_t idx) const;

  /// Tokens of each document into `out`, [num_documents]. Throws InputError where the table does
  /// not rise, or a document is longer than 2^31 - 1 tokens.
  void document_lengths(std::span<int32_t> out) const;

  /// Checks every entry of every table, O(num_sequences + num_documents). After it no access of a
  /// document or sequence in range throws.
  void check_tables() const;

  /// The sequences' lengths as they lie in the file, int32 and not aligned.
  const std::byte* sequence_lengths() const { return lengths_; }

 private:
  IndexView(uint64_t bin_size, std::filesystem::path prefix);
  void read_header(std::span<const std::byte> index);
  void check_ends() const;
  bool documents_are_sequences() const;
  TokenExtent extent(int64_t first, int64_t last, const char* what, int64_t idx) const;
  [[noreturn]] void throw_damaged_table(int64_t document) const;
  std::string index_name() const { return prefix_.string() + ".idx"; }

  int32_t length(int64_t sequence) const;
  int64_t begin(int64_t sequence) const;
  int64_t first_sequence(int64_t document) const;

  std::filesystem::path prefix_;
  uint64_t bin_size_ = 0;
  TokenType token_type_{};
  int64_t token_bytes_ = 0;
  bool has_modes_ = false;
  int64_t num_sequences_ = 0;
  int64_t num_documents_ = 0;
  const std::byte* lengths_ = nullptr;
  const std::byte* pointers_ = nullptr;
  const std::byte* documents_ = nullptr;
};

}  // namespace dsm
