#pragma once

#include <array>
#include <cstdint>
#include <string_view>

#include "core/utf8.h"

namespace dsm {

enum class CharacterKind : uint8_t { space, letter, digit, ideograph, mathematical, punctuation };

struct Character {
  uint32_t code;
  int32_t bytes;
};

/// The character at the text's first byte, with the forms folded that copies of a text differ in:
/// case of ASCII letters, full-width forms, curly quotes, dashes, the minus sign, wide spaces. A
/// byte that begins no whole character stands for itself.
inline Character fold_character(std::string_view text) {
  const auto lead = static_cast<uint8_t>(text.front());
  if (lead < 0x80) {
    return {lead >= 'A' && lead <= 'Z' ? lead + 32u : lead, 1};
  }
  const int32_t bytes = utf8_bytes(lead);
  if (static_cast<size_t>(bytes) > text.size()) return {lead, 1};
  const uint32_t code = decode_utf8(text.data());
  if (code >= 0xFF01 && code <= 0xFF5E) {
    const uint32_t ascii = code - 0xFEE0;
    return {ascii >= 'A' && ascii <= 'Z' ? ascii + 32 : ascii, bytes};
  }
  if (code == 0x2018 || code == 0x2019) return {'\'', bytes};
  if (code == 0x201C || code == 0x201D) return {'"', bytes};
  if ((code >= 0x2010 && code <= 0x2015) || code == 0x2212) return {'-', bytes};
  if (code == 0xA0 || code == 0x3000 || code == 0xFEFF) return {' ', bytes};
  return {code, bytes};
}

namespace detail {

constexpr std::array<CharacterKind, 128> ascii_kinds() {
  std::array<CharacterKind, 128> kinds{};
  for (size_t c = 0; c < 128; ++c) {
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    const bool digit = c >= '0' && c <= '9';
    kinds[c] = c <= ' ' || c == 127 ? CharacterKind::space
               : letter             ? CharacterKind::letter
               : digit              ? CharacterKind::digit
                                    : CharacterKind::punctuation;
  }
  for (const char c : std::string_view("+-*/=<>^%|")) {
    kinds[static_cast<size_t>(c)] = CharacterKind::mathematical;
  }
  return kinds;
}

inline constexpr std::array<CharacterKind, 128> ascii_kind = ascii_kinds();

}  // namespace detail

inline bool is_ascii(char c) { return static_cast<uint8_t>(c) < 0x80; }

/// The kind of a byte below 128.
inline CharacterKind ascii_kind_of(char c) { return detail::ascii_kind[static_cast<uint8_t>(c)]; }

/// The kind of a folded character. Ideographs are the characters that are written without spaces
/// between words: Chinese, kana, hangul.
inline CharacterKind kind_of(uint32_t code) {
  using enum CharacterKind;
  const auto within = [code](uint32_t first, uint32_t last) {
    return code >= first && code <= last;
  };
  if (code < 0x80) return detail::ascii_kind[code];
  if (within(0x4E00, 0x9FFF) || within(0x3400, 0x4DBF) || within(0x3005, 0x3007) ||
      within(0x3040, 0x30FF) || within(0xAC00, 0xD7AF) || within(0xF900, 0xFAFF) ||
      within(0x20000, 0x3FFFF)) {
    return ideograph;
  }
  if (within(0x80, 0xA0) || within(0x2000, 0x200F) || within(0x2028, 0x202F) ||
      within(0x205F, 0x206F) || code == 0x1680) {
    return space;
  }
  if (code == 0xD7 || code == 0xF7 || code == 0xAC || code == 0xB0 || code == 0xB1 ||
      within(0x2190, 0x22FF) || within(0x2A00, 0x2AFF) || within(0x2030, 0x2037) ||
      within(0x20A0, 0x20CF)) {
    return mathematical;
  }
  if (within(0xA1, 0xBF) || within(0x2010, 0x205E) || within(0x2300, 0x2BFF) ||
      within(0x3001, 0x303F) || within(0xE000, 0xF8FF) || within(0xFE00, 0xFE6F) ||
      within(0xFF00, 0xFFFF) || within(0x1F000, 0x1FAFF)) {
    return punctuation;
  }
  return letter;
}

}  // namespace dsm
