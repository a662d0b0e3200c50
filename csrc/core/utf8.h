#pragma once

#include <cstdint>
#include <string_view>

namespace dsm {

/// Bytes that decode_utf8 may read from its first.
constexpr int32_t utf8_max_bytes = 4;

/// Bytes of the character that begins with `lead`.
inline int32_t utf8_bytes(uint8_t lead) {
  if (lead < 0x80) return 1;
  return lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
}

/// The code point of the valid character at `at`. On other bytes it is some number; utf8_max_bytes
/// must be readable all the same.
inline uint32_t decode_utf8(const char* at) {
  const auto byte = [at](int i) { return static_cast<uint32_t>(static_cast<uint8_t>(at[i])); };
  const uint32_t lead = byte(0);
  if (lead < 0x80) return lead;
  if (lead < 0xE0) return (lead & 0x1F) << 6 | (byte(1) & 0x3F);
  if (lead < 0xF0) return (lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F);
  return (lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F);
}

}  // namespace dsm
