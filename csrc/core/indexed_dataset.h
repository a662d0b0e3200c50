#pragma once

#include <cstdint>
#include <filesystem>

#include "core/mapped_file.h"

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

/// One document's tokens inside the mapping.
struct DocumentView {
  const std::byte* data;
  int64_t length;  ///< tokens
};

/// PREFIX.bin and PREFIX.idx as megatron.core writes them, one sequence a document.
///
/// Opening checks in O(1): magic, version, dtype code, the size equation of both files, the ends of
/// the tables. What opening cannot see is checked where it is used. Every fault is an InputError
/// that names the file, what was expected and what was found.
class IndexedDataset {
 public:
  explicit IndexedDataset(const std::filesystem::path& prefix);

  int64_t num_documents() const { return num_documents_; }
  TokenType token_type() const { return token_type_; }
  const std::filesystem::path& prefix() const { return prefix_; }

  /// Throws InputError where idx is out of range or the index contradicts itself there.
  DocumentView document(int64_t idx) const;

  /// Asks the memory for what document(idx) will read of the index, and does not wait for it; idx exists.
  void prefetch_entry(int64_t idx) const {
    __builtin_prefetch(lengths_ + 4 * idx);
    __builtin_prefetch(pointers_ + 8 * idx);
  }

  /// The lengths as they lie in the file, int32 and not aligned.
  const std::byte* lengths() const { return lengths_; }

 private:
  void parse_index();
  void check_ends() const;
  int64_t length(int64_t idx) const;
  int64_t pointer(int64_t idx) const;

  std::filesystem::path prefix_;
  MappedFile index_;
  MappedFile tokens_;
  TokenType token_type_{};
  int64_t token_bytes_ = 0;
  int64_t num_documents_ = 0;
  const std::byte* lengths_ = nullptr;
  const std::byte* pointers_ = nullptr;
  const std::byte* documents_ = nullptr;
};

}  // namespace dsm
