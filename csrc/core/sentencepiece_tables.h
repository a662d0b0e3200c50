#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/pair_table.h"

namespace dsm {

/// What a piece is; the numbers are those of the model file.
enum class PieceKind : uint8_t {
  normal = 1,
  unknown = 2,
  control = 3,
  user_defined = 4,
  unused = 5,
  byte = 6,
};

struct SentencePiece {
  std::string_view text;  // UTF-8, a space written as U+2581
  float score = 0;        // of two merges the higher comes first
  PieceKind kind = PieceKind::normal;
};

/// A symbol of user text that is one piece wherever it stands.
struct SymbolMatch {
  int32_t num_bytes = 0;  // 0: none stands here
  int32_t id = 0;
};

/// A SentencePiece BPE model compiled for lookups by number. Where the model has U+2581 the tables
/// have a plain space: no model text holds one, so the two are the same and the space is shorter.
///
/// A merge is a pair of symbols. A symbol is a piece, by its id, or a character that stands in
/// pieces without being one, by a number from the vocabulary's size on.
class SentencePieceTables {
 public:
  static constexpr int32_t no_symbol = -1;  // a character that no piece holds

  /// Raises InputError, its text a reason to use the library, where the pieces are not covered.
  SentencePieceTables(std::span<const SentencePiece> pieces, bool byte_fallback);

  bool byte_fallback() const { return byte_fallback_; }
  int32_t unk_id() const { return unk_id_; }
  int32_t byte_id(uint8_t byte) const { return byte_ids_[byte]; }
  bool is_piece(int32_t symbol) const { return symbol >= 0 && symbol < vocab_size_; }
  float score(int32_t id) const { return scores_[static_cast<size_t>(id)]; }

  int32_t character_symbol(uint32_t character) const {
    return character < num_ascii ? ascii_symbols_[character] : characters_.find(0, character);
  }

  /// The piece the two symbols make together, or PairTable::absent.
  int32_t merged(int32_t left, int32_t right) const {
    return merges_.find(static_cast<uint32_t>(left), static_cast<uint32_t>(right));
  }

  /// Whether some piece holds the two characters one after the other. Where none does, no merge
  /// crosses, and the text's two sides are encoded apart with the same result.
  bool joins(uint32_t left, uint32_t right) const {
    if (left < num_ascii && right < num_ascii) {
      return ascii_joins_[left][right >> 6] >> (right & 63) & 1;
    }
    return joins_.find(left, right) != PairTable::absent;
  }

  bool may_begin_symbol(char byte) const { return symbol_begins_[static_cast<uint8_t>(byte)]; }

  /// The longest user-defined symbol that `text` begins with.
  SymbolMatch match_symbol(std::string_view text) const;

 private:
  static constexpr uint32_t num_ascii = 128;

  void add_joins(std::string_view text);
  void set_character(uint32_t character, int32_t symbol);
  void add_symbol(std::string_view text, int32_t id);

  bool byte_fallback_;
  int32_t vocab_size_;
  int32_t num_symbols_;
  int32_t unk_id_ = PairTable::absent;
  std::array<int32_t, 256> byte_ids_;
  std::vector<float> scores_;
  PairTable merges_;
  std::array<int32_t, num_ascii> ascii_symbols_;
  PairTable characters_;  // (0, code point) to symbol
  std::array<std::array<uint64_t, 2>, num_ascii> ascii_joins_{};
  PairTable joins_;  // pairs that are not both ASCII
  std::array<bool, 256> symbol_begins_{};
  PairTable trie_;                                    // (node, byte) to node; node 0 is the root
  std::vector<int32_t> trie_ids_{PairTable::absent};  // by node, where a symbol ends
};

/// How the model and its pieces write a space.
constexpr std::string_view space_mark = "\xE2\x96\x81";  // U+2581

/// `text` with U+2581 as a plain space, appended to `out`.
void append_with_spaces(std::string_view text, std::vector<char>& out);

}  // namespace dsm
