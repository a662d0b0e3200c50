#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace dsm {

enum class TextTokenKind : uint8_t { word, number, ideograph, mathematical, punctuation, mark };

struct TextToken {
  uint64_t hash;
  TextTokenKind kind;
};

/// Splits a text into tokens, of which only hashes are kept: words and LaTeX commands, numbers,
/// and single characters of all other kinds. White space and what LaTeX has for it, `$` and the
/// other delimiters of formulas, and the sizes of brackets and fractions leave no trace; a number
/// has its decimals and no separators of thousands. A mark is U+001F and the letters behind it:
/// callers put marks where texts have parts.
void read_tokens(std::string_view text, std::vector<TextToken>& tokens);

/// Splits a text into the words between its white space, of which only hashes are kept: a formula
/// stays whole and loses its white space and delimiters, punctuation around words goes, and what
/// was punctuation alone is no word. Delimiters with prose between them are no formula.
void read_words(std::string_view text, std::vector<uint64_t>& words);

}  // namespace dsm
