#include "core/sentencepiece_tables.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <string>
#include <unordered_map>

#include "core/error.h"
#include "core/utf8.h"

namespace dsm {
namespace {

constexpr size_t max_pieces = size_t{1} << 24;

std::string with_spaces(std::string_view text) {
  std::vector<char> bytes;
  append_with_spaces(text, bytes);
  return {bytes.begin(), bytes.end()};
}

uint32_t character_at(std::string_view text, size_t at) {
  char bytes[utf8_max_bytes] = {};
  std::memcpy(bytes, text.data() + at, std::min(sizeof(bytes), text.size() - at));
  return decode_utf8(bytes);
}

size_t next_character(std::string_view text, size_t at) {
  return std::min(text.size(),
                  at + static_cast<size_t>(utf8_bytes(static_cast<uint8_t>(text[at]))));
}

bool is_one_character(std::string_view text) { return next_character(text, 0) == text.size(); }

bool is_text(PieceKind kind) {
  return kind == PieceKind::normal || kind == PieceKind::user_defined;
}

// Of "<0x41>" the 0x41.
uint8_t byte_of(const SentencePiece& piece) {
  uint8_t byte = 0;
  const std::string_view text = piece.text;
  const char* end = text.data() + text.size();
  const bool framed = text.size() == 6 && text.starts_with("<0x") && text.ends_with('>');
  if (!framed || std::from_chars(text.data() + 3, end - 1, byte, 16).ptr != end - 1) {
    throw InputError(concat("its byte piece '", text, "' names no byte"));
  }
  return byte;
}

// The pieces that text can become, by their text with plain spaces. Those with a plain space in the
// model are left out: the library looks for U+2581 and never finds them.
class TextPieces {
 public:
  explicit TextPieces(std::span<const SentencePiece> pieces) : texts_(pieces.size()) {
    for (size_t id = 0; id < pieces.size(); ++id) {
      const SentencePiece& piece = pieces[id];
      if (!is_text(piece.kind) || piece.text.find(' ') != std::string_view::npos) continue;
      texts_[id] = with_spaces(piece.text);
      if (!ids_.emplace(texts_[id], static_cast<int32_t>(id)).second) {
        throw InputError(concat("its piece '", piece.text, "' stands there twice"));
      }
    }
  }

  /// Empty where text never becomes the piece.
  std::string_view text(size_t id) const { return texts_[id]; }

  int32_t find(std::string_view text) const {
    const auto found = ids_.find(text);
    return found == ids_.end() ? PairTable::absent : found->second;
  }

 private:
  std::vector<std::string> texts_;
  std::unordered_map<std::string_view, int32_t> ids_;
};

void check_pieces(std::span<const SentencePiece> pieces, const TextPieces& texts) {
  if (pieces.empty() || pieces.size() > max_pieces) {
    throw InputError(concat("it has ", pieces.size(), " pieces"));
  }
  for (const SentencePiece& piece : pieces) {
    if (piece.text.empty()) throw InputError("it has an empty piece");
    if (std::isnan(piece.score)) throw InputError("it has a score that is no number");
    if (piece.kind == PieceKind::unused) throw InputError("it has unused pieces");
    if (piece.kind == PieceKind::byte) byte_of(piece);
    // The library looks a character up among these first: its text would become the control id.
    const bool reserved = !is_text(piece.kind);
    if (reserved && (is_one_character(piece.text) || texts.find(piece.text) >= 0)) {
      throw InputError(concat("its control piece '", piece.text, "' is text at the same time"));
    }
  }
}

}  // namespace

SentencePieceTables::SentencePieceTables(std::span<const SentencePiece> pieces, bool byte_fallback)
    : byte_fallback_(byte_fallback),
      vocab_size_(static_cast<int32_t>(pieces.size())),
      num_symbols_(vocab_size_) {
  const TextPieces texts(pieces);
  check_pieces(pieces, texts);
  byte_ids_.fill(PairTable::absent);
  ascii_symbols_.fill(no_symbol);
  for (size_t i = 0; i < pieces.size(); ++i) {
    const SentencePiece& piece = pieces[i];
    const auto id = static_cast<int32_t>(i);
    scores_.push_back(piece.score);
    if (piece.kind == PieceKind::unknown) unk_id_ = id;
    if (piece.kind == PieceKind::byte) byte_ids_[byte_of(piece)] = id;
    const std::string_view text = texts.text(i);
    if (text.empty()) continue;
    if (piece.kind == PieceKind::user_defined) add_symbol(text, id);
    if (is_one_character(text)) set_character(character_at(text, 0), id);
  }
  if (unk_id_ < 0) throw InputError("it has no unknown piece");
  if (byte_fallback && *std::ranges::min_element(byte_ids_) < 0) {
    throw InputError("it falls back on bytes and lacks some");
  }
  for (size_t i = 0; i < pieces.size(); ++i) {
    if (pieces[i].kind == PieceKind::normal) add_joins(texts.text(i));
  }
  const auto symbol = [&](std::string_view text) {
    return is_one_character(text) ? character_symbol(character_at(text, 0)) : texts.find(text);
  };
  for (size_t i = 0; i < pieces.size(); ++i) {
    const std::string_view text = texts.text(i);
    if (pieces[i].kind != PieceKind::normal || text.empty()) continue;
    for (size_t at = next_character(text, 0); at < text.size(); at = next_character(text, at)) {
      const int32_t left = symbol(text.substr(0, at));
      const int32_t right = symbol(text.substr(at));
      if (left < 0 || right < 0) continue;
      merges_.insert(static_cast<uint32_t>(left), static_cast<uint32_t>(right),
                     static_cast<int32_t>(i));
    }
  }
}

SymbolMatch SentencePieceTables::match_symbol(std::string_view text) const {
  SymbolMatch longest;
  int32_t node = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    node = trie_.find(static_cast<uint32_t>(node), static_cast<uint8_t>(text[i]));
    if (node < 0) break;
    const int32_t id = trie_ids_[static_cast<size_t>(node)];
    if (id >= 0) longest = {static_cast<int32_t>(i) + 1, id};
  }
  return longest;
}

void SentencePieceTables::set_character(uint32_t character, int32_t symbol) {
  if (character < num_ascii) {
    ascii_symbols_[character] = symbol;
  } else {
    characters_.insert(0, character, symbol);
  }
}

void SentencePieceTables::add_joins(std::string_view text) {
  for (size_t at = 0; at < text.size(); at = next_character(text, at)) {
    const uint32_t left = character_at(text, at);
    if (character_symbol(left) < 0) set_character(left, num_symbols_++);
    const size_t next = next_character(text, at);
    if (next == text.size()) break;
    const uint32_t right = character_at(text, next);
    if (left < num_ascii && right < num_ascii) {
      ascii_joins_[left][right >> 6] |= uint64_t{1} << (right & 63);
    } else {
      joins_.insert(left, right, 0);
    }
  }
}

void SentencePieceTables::add_symbol(std::string_view text, int32_t id) {
  symbol_begins_[static_cast<uint8_t>(text[0])] = true;
  uint32_t node = 0;
  for (const char c : text) {
    const auto added = static_cast<int32_t>(trie_ids_.size());
    if (trie_.insert(node, static_cast<uint8_t>(c), added)) trie_ids_.push_back(-1);
    node = static_cast<uint32_t>(trie_.find(node, static_cast<uint8_t>(c)));
  }
  trie_ids_[node] = id;
}

void append_with_spaces(std::string_view text, std::vector<char>& out) {
  for (size_t found; (found = text.find(space_mark)) != text.npos;) {
    out.insert(out.end(), text.begin(), text.begin() + static_cast<int64_t>(found));
    out.push_back(' ');
    text.remove_prefix(found + space_mark.size());
  }
  out.insert(out.end(), text.begin(), text.end());
}

}  // namespace dsm
