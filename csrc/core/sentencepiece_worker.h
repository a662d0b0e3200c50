#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/sentencepiece_cache.h"
#include "core/sentencepiece_merge.h"
#include "core/sentencepiece_tables.h"

namespace dsm {

/// Encodes one text at a time: cuts it into units, finds or makes the ids of each. Holds what one
/// thread needs, so that threads share the tables only.
class SentencePieceWorker {
 public:
  explicit SentencePieceWorker(const SentencePieceTables& tables)
      : tables_(tables), merger_(tables) {}

  /// Appends the ids of `text`, and of a space before it where `prefix` says so and it is not
  /// empty.
  void encode(std::string_view text, bool prefix, std::vector<int32_t>& ids);

 private:
  void encode_units(int64_t size, std::vector<int32_t>& ids);
  void append_unit(const char* at, size_t num_bytes, std::vector<int32_t>& ids);
  void append(std::span<const int32_t> added, std::vector<int32_t>& ids);

  const SentencePieceTables& tables_;
  SentencePieceMerger merger_;
  UnitCache cache_;
  std::vector<char> text_;  // as the tables have it, with bytes behind the end that may be read
  std::vector<int32_t> made_;
  size_t text_begin_ = 0;  // of the current text, in ids
};

}  // namespace dsm
