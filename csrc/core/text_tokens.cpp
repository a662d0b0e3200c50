#include "core/text_tokens.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>

#include "core/text_characters.h"
#include "core/text_hash.h"

namespace dsm {
namespace {

constexpr char mark_character = '\x1F';
constexpr uint64_t mark_seed = 1;
constexpr std::string_view spacing_after_backslash = ",;:!()[]\\ \n";
constexpr std::array<std::string_view, 5> insignificant_commands{"quad", "qquad", "left", "right",
                                                                 "displaystyle"};

bool is_of(char c, CharacterKind kind) { return is_ascii(c) && ascii_kind_of(c) == kind; }

bool is_white(char c) { return is_of(c, CharacterKind::space); }

size_t end_of_letters(std::string_view text, size_t at) {
  while (at < text.size() && is_of(text[at], CharacterKind::letter)) ++at;
  return at;
}

uint64_t hash_of(std::string_view text, uint64_t seed = 0) {
  StringHash hash(seed);
  for (const char c : text) hash.add(fold_character({&c, 1}).code);
  return hash.value();
}

class TokenReader {
 public:
  TokenReader(std::string_view text, std::vector<TextToken>& tokens)
      : text_(text), tokens_(tokens) {}

  void read() {
    while (at_ < text_.size()) {
      const char byte = text_[at_];
      if (byte == '\\') {
        read_backslash();
      } else if (byte == mark_character) {
        const size_t end = end_of_letters(text_, at_ + 1);
        add(hash_of(text_.substr(at_, end - at_), mark_seed), TextTokenKind::mark);
        at_ = end;
      } else {
        read_plain();
      }
    }
  }

 private:
  void add(uint64_t hash, TextTokenKind kind) { tokens_.push_back({hash, kind}); }

  Character character_at(size_t at) const {
    return at < text_.size() ? fold_character(text_.substr(at)) : Character{0, 1};
  }

  bool digit_at(size_t at) const { return kind_of(character_at(at).code) == CharacterKind::digit; }

  void read_backslash() {
    const size_t begin = at_ + 1;
    const size_t end = end_of_letters(text_, begin);
    if (end > begin) {
      add_command(text_.substr(begin, end - begin));
      at_ = end;
    } else {
      // An escaped character, such as a percent sign, is read as if it stood alone.
      const bool spacing = begin < text_.size() &&
                           spacing_after_backslash.find(text_[begin]) != std::string_view::npos;
      at_ = spacing ? begin + 1 : begin;
    }
  }

  void add_command(std::string_view name) {
    if (std::ranges::find(insignificant_commands, name) != insignificant_commands.end()) return;
    if (name == "dfrac" || name == "tfrac") name = "frac";
    add(hash_of(name, '\\'), TextTokenKind::word);
  }

  void read_plain() {
    if (is_white(text_[at_])) {
      ++at_;
      return;
    }
    const Character first = character_at(at_);
    const CharacterKind kind = kind_of(first.code);
    if (kind == CharacterKind::letter) {
      StringHash hash;
      add_run(hash, CharacterKind::letter);
      add(hash.value(), TextTokenKind::word);
    } else if (kind == CharacterKind::digit) {
      read_number();
    } else {
      at_ += static_cast<size_t>(first.bytes);
      if (kind == CharacterKind::space || first.code == '$' || first.code == '~') return;
      StringHash hash;
      hash.add(first.code);
      add(hash.value(), kind == CharacterKind::ideograph      ? TextTokenKind::ideograph
                        : kind == CharacterKind::mathematical ? TextTokenKind::mathematical
                                                              : TextTokenKind::punctuation);
    }
  }

  /// Adds the characters of this kind that stand here in a row.
  void add_run(StringHash& hash, CharacterKind kind) {
    while (at_ < text_.size()) {
      if (is_ascii(text_[at_])) {
        if (ascii_kind_of(text_[at_]) != kind) return;
        hash.add(kind == CharacterKind::letter ? text_[at_] | 0x20 : text_[at_]);
        ++at_;
        continue;
      }
      const Character next = character_at(at_);
      if (kind_of(next.code) != kind) return;
      hash.add(next.code);
      at_ += static_cast<size_t>(next.bytes);
    }
  }

  void read_number() {
    StringHash hash;
    add_run(hash, CharacterKind::digit);
    while (const size_t begin = begin_of_thousands()) {
      at_ = begin;
      add_run(hash, CharacterKind::digit);
    }
    const Character point = character_at(at_);
    if (point.code == '.' && digit_at(at_ + static_cast<size_t>(point.bytes))) {
      hash.add('.');
      at_ += static_cast<size_t>(point.bytes);
      add_run(hash, CharacterKind::digit);
    }
    add(hash.value(), TextTokenKind::number);
  }

  /// Where three digits and no more stand behind `,` or TeX's `{,}` and `,\!`, their place; else 0.
  size_t begin_of_thousands() const {
    size_t begin = at_;
    const std::string_view rest = text_.substr(std::min(at_, text_.size()));
    if (rest.starts_with("{,}") || rest.starts_with(",\\!")) {
      begin += 3;
    } else if (const Character comma = character_at(at_); comma.code == ',') {
      begin += static_cast<size_t>(comma.bytes);
    } else {
      return 0;
    }
    size_t end = begin;
    for (int i = 0; i < 3; ++i) {
      if (!digit_at(end)) return 0;
      end += static_cast<size_t>(character_at(end).bytes);
    }
    return digit_at(end) ? 0 : begin;
  }

  std::string_view text_;
  std::vector<TextToken>& tokens_;
  size_t at_ = 0;
};

constexpr std::array<bool, 256> bytes_among(std::string_view bytes) {
  std::array<bool, 256> among{};
  for (const char c : bytes) among[static_cast<uint8_t>(c)] = true;
  return among;
}

/// Bytes that only take their word further.
constexpr std::array<bool, 256> make_plain_bytes() {
  std::array<bool, 256> plain{};
  for (size_t c = '!'; c < 127; ++c) plain[c] = c != '$' && c != '\\';
  return plain;
}

constexpr std::array<bool, 256> stripped_bytes = bytes_among(".,;:?!\"'()[]{}`*");
constexpr std::array<bool, 256> plain_bytes = make_plain_bytes();

bool is_plain(char c) { return plain_bytes[static_cast<uint8_t>(c)]; }

bool is_stripped(uint32_t code) {
  return code < 0x80 ? stripped_bytes[code] : kind_of(code) == CharacterKind::punctuation;
}

/// Where the punctuation at the word's beginning ends, or `limit` where that is before.
size_t end_of_stripped(std::string_view word, size_t limit) {
  size_t at = 0;
  while (at < limit) {
    const Character next = fold_character(word.substr(at));
    if (!is_stripped(next.code)) break;
    at += static_cast<size_t>(next.bytes);
  }
  return at;
}

/// Where the punctuation at the word's end begins, or `limit` where that is behind.
size_t begin_of_stripped(std::string_view word, size_t limit) {
  size_t end = word.size();
  while (end > limit) {
    size_t begin = end - 1;
    while (begin > limit && (static_cast<uint8_t>(word[begin]) & 0xC0) == 0x80) --begin;
    if (!is_stripped(fold_character(word.substr(begin)).code)) break;
    end = begin;
  }
  return end;
}

/// ASCII capitals of the eight bytes in lower case.
uint64_t lower_case(uint64_t bytes) {
  constexpr uint64_t each = 0x0101010101010101u;
  const uint64_t low = bytes & (each * 0x7F);
  const uint64_t from_a = low + each * (0x80 - 'A');
  const uint64_t beyond_z = low + each * (0x7F - 'Z');
  return bytes | ((from_a ^ beyond_z) & ~bytes & (each * 0x80)) >> 2;
}

uint64_t hash_of_word(std::string_view word) {
  StringHash hash(word.size());
  uint64_t bytes;
  for (; word.size() >= sizeof bytes; word.remove_prefix(sizeof bytes)) {
    std::memcpy(&bytes, word.data(), sizeof bytes);
    hash.add(lower_case(bytes));
  }
  bytes = 0;
  std::memcpy(&bytes, word.data(), word.size());
  hash.add(lower_case(bytes));
  return hash.value();
}

/// Whether three words of two letters or more stand in a row: then a delimiter is missing, and what
/// stands between these two is not to be hidden in one word.
bool reads_as_prose(std::string_view formula) {
  int words = 0;
  size_t at = 0;
  while (at < formula.size()) {
    const size_t begin = at;
    at = end_of_letters(formula, at);
    const size_t letters = at - begin;
    if (at < formula.size() && (formula[at] == ',' || formula[at] == '.')) ++at;
    const bool word_ends = at == formula.size() || is_white(formula[at]);
    words = letters >= 2 && word_ends ? words + 1 : 0;
    if (words == 3) return true;
    while (at < formula.size() && !is_white(formula[at])) ++at;
    while (at < formula.size() && is_white(formula[at])) ++at;
  }
  return false;
}

class WordReader {
 public:
  WordReader(std::string_view text, std::vector<uint64_t>& words) : text_(text), words_(words) {}

  void read() {
    while (at_ < text_.size()) {
      size_t end = at_;
      while (end < text_.size() && is_plain(text_[end])) ++end;
      const std::string_view plain = text_.substr(at_, end - at_);
      at_ = end;
      const bool word_ends = end == text_.size() || is_white(text_[end]);
      if (word_ends && word_.empty()) {  // as nearly all words of English prose
        add_word(plain, plain.size(), 0);
        ++at_;
        continue;
      }
      word_ += plain;
      if (word_ends) {
        finish_word();
        ++at_;
      } else if (!read_formula()) {
        read_other();
      }
    }
    finish_word();
  }

 private:
  struct Delimiters {
    std::string_view open;
    std::string_view close;
  };
  static constexpr std::array<Delimiters, 4> delimiters{
      {{"$$", "$$"}, {"\\(", "\\)"}, {"\\[", "\\]"}, {"$", "$"}}};

  bool read_formula() {
    if (text_[at_] != '$' && text_[at_] != '\\') return false;
    const std::string_view rest = text_.substr(at_);
    for (const Delimiters& delimiter : delimiters) {
      if (!rest.starts_with(delimiter.open)) continue;
      const size_t begin = at_ + delimiter.open.size();
      const size_t end =
          delimiter.open == "$" ? end_of_dollars(begin) : end_of_formula(delimiter, begin);
      if (end == std::string_view::npos) continue;
      const std::string_view formula = text_.substr(begin, end - begin);
      if (reads_as_prose(formula)) continue;
      add_formula(formula);
      at_ = end + delimiter.close.size();
      return true;
    }
    return false;
  }

  /// Where the closing delimiter stands: in this paragraph, and before the next opening one, so
  /// that no text is searched twice.
  size_t end_of_formula(const Delimiters& delimiter, size_t begin) const {
    for (size_t at = begin; at < text_.size() && !paragraph_ends(at); ++at) {
      if (text_[at] != delimiter.open.front()) continue;
      const std::string_view rest = text_.substr(at);
      if (rest.starts_with(delimiter.close)) return at;
      if (rest.starts_with(delimiter.open)) break;
    }
    return std::string_view::npos;
  }

  /// The same for `$`, which is money as often: a formula has no space at its inner edges, and no
  /// digit behind it.
  size_t end_of_dollars(size_t begin) const {
    size_t at = begin;
    while (at < text_.size() && text_[at] != '$' && !paragraph_ends(at)) {
      at += text_[at] == '\\' ? 2 : 1;
    }
    const bool closed = at < text_.size() && text_[at] == '$' && at > begin &&
                        !is_white(text_[begin]) && !is_white(text_[at - 1]);
    const bool money = at + 1 < text_.size() && is_of(text_[at + 1], CharacterKind::digit);
    return closed && !money ? at : std::string_view::npos;
  }

  bool paragraph_ends(size_t at) const {
    if (text_[at] != '\n') return false;
    const std::string_view rest = text_.substr(at);
    return rest.starts_with("\n\n") || rest.starts_with("\n\r\n");
  }

  void add_formula(std::string_view formula) {
    const size_t begin = word_.size();
    while (!formula.empty()) {
      const Character next = fold_character(formula);
      if (kind_of(next.code) != CharacterKind::space) append(next, formula);
      formula.remove_prefix(static_cast<size_t>(next.bytes));
    }
    if (word_.size() == begin) return;
    if (!has_formula_) formula_begin_ = begin;
    has_formula_ = true;
    formula_end_ = word_.size();
  }

  /// Adds a folded character to the word; `rest` begins with it as it was.
  void append(const Character& next, std::string_view rest) {
    if (next.code < 0x80) {
      word_ += static_cast<char>(next.code);
    } else {
      word_ += rest.substr(0, static_cast<size_t>(next.bytes));
    }
  }

  void read_other() {
    const std::string_view rest = text_.substr(at_);
    if (rest.starts_with("\\$")) {
      at_ += 2;
    } else if (rest.starts_with("\\\\")) {
      word_ += "\\\\";
      at_ += 2;
    } else if (rest.starts_with('$')) {
      ++at_;
    } else {
      const Character next = fold_character(rest);
      at_ += static_cast<size_t>(next.bytes);
      if (kind_of(next.code) == CharacterKind::space) {
        finish_word();
      } else {
        append(next, rest);
      }
    }
  }

  void finish_word() {
    add_word(word_, has_formula_ ? formula_begin_ : word_.size(), has_formula_ ? formula_end_ : 0);
    word_.clear();
    has_formula_ = false;
  }

  /// Punctuation is stripped before `first_formula` and behind `last_formula`.
  void add_word(std::string_view word, size_t first_formula, size_t last_formula) {
    const size_t begin = end_of_stripped(word, first_formula);
    const size_t end = begin_of_stripped(word, std::max(begin, last_formula));
    if (begin < end) words_.push_back(hash_of_word(word.substr(begin, end - begin)));
  }

  std::string_view text_;
  std::vector<uint64_t>& words_;
  size_t at_ = 0;
  std::string word_;  // what was read of it; its formulas stand in [formula_begin_, formula_end_)
  size_t formula_begin_ = 0;
  size_t formula_end_ = 0;
  bool has_formula_ = false;
};

}  // namespace

void read_tokens(std::string_view text, std::vector<TextToken>& tokens) {
  tokens.clear();
  TokenReader(text, tokens).read();
}

void read_words(std::string_view text, std::vector<uint64_t>& words) {
  words.clear();
  WordReader(text, words).read();
}

}  // namespace dsm
