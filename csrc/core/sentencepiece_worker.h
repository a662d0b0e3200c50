#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/id_list.h"
#include "core/sentencepiece_cache.h"
#include "core/sentencepiece_merge.h"
#include "core/sentencepiece_tables.h"

namespace dsm {

/// Encodes one text at a time: cuts it into units and finds or makes the ids of each. Holds what
/// one thread needs, so that threads share the tables only.
class SentencePieceWorker {
 public:
  explicit SentencePieceWorker(const SentencePieceTables& tables)
      : tables_(tables), merger_(tables) {}

  /// Appends the ids of `text`, and of a space before it where `prefix` says so and the text is not
  /// empty. Raises InputError where the text is longer than positions count.
  void encode(std::string_view text, bool prefix, IdList& ids);

 private:
  // Bytes of the text whose ends no merge crosses; or a user-defined symbol, of no bytes here.
  struct Unit {
    int32_t begin;
    int32_t num_bytes;
    int32_t set_or_id;  // where the cache has it; of a symbol the id
  };

  int32_t cut(int32_t begin, int32_t size);
  void add_unit(int32_t begin, int32_t end);
  void append_unit(const Unit& unit, IdList& ids);
  std::span<const int32_t> merged(std::string_view unit);
  void append(std::span<const int32_t> added, IdList& ids) const;
  bool repeats_unknown(int32_t id, const IdList& ids) const;
  static bool is_cached(int32_t num_bytes) { return num_bytes <= UnitCache::max_unit_bytes; }

  const SentencePieceTables& tables_;
  SentencePieceMerger merger_;
  UnitCache cache_;
  std::vector<char> text_;  // as the tables have it, with bytes behind the end that may be read
  std::vector<Unit> units_;
  std::vector<int32_t> made_;
  int64_t text_begin_ = 0;  // of the current text, in ids
};

}  // namespace dsm
