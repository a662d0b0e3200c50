#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "core/pack_index.h"

namespace dsm {

/// A pack-index file (docs/formats.md) as it lies in memory. Its checksums are the caller's to
/// compare; what is read here is safe to read whatever the bytes are.
struct PackFile {
  PackStrategy strategy{};
  OverlongPolicy overlong{};
  PackCost cost{};
  PackLedger ledger{};
  int64_t num_packs = 0;
  int64_t num_pieces = 0;
  int64_t capacity = 0;
  int64_t alignment = 1;
  uint64_t seed = 0;
  uint64_t epoch = 0;
  int64_t id_bytes = 4;
  bool has_begins = false;
  uint64_t lengths_xxh3 = 0;
  uint64_t payload_xxh3 = 0;
  uint64_t header_xxh3 = 0;
  int64_t documents_begin = 0;  ///< byte of the document ids
  int64_t begins_begin = 0;     ///< byte of the begins
};

inline constexpr int64_t pack_header_bytes = 192;
inline constexpr int64_t pack_header_hashed_bytes = 152;  ///< what header_xxh3 is the XXH3 of
inline constexpr int64_t pack_alignment_bytes = 64;

/// The header, once magic, version, ranges and the size equation hold; throws InputError that
/// begins with `name`. The bytes are aligned to 8.
PackFile parse_pack_file(std::span<const std::byte> bytes, const std::string& name);

/// Parses the header and checks the arrays behind it: offsets that rise from 0 to the number of
/// pieces, document ids and begins in range. Throws InputError.
void check_pack_arrays(std::span<const std::byte> bytes, const std::string& name);

/// The header's bytes, with header_xxh3 as it is in `file`.
void write_pack_header(const PackFile& file, std::span<std::byte> out);

}  // namespace dsm
