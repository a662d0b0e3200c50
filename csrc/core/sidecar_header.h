#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "core/checked_size.h"

// What .spans and .attributes have in common. Each check throws InputError that names `file`.

namespace dsm {

struct SidecarKind {
  std::string_view magic;  ///< 8 bytes
  const char* what;        ///< for messages
  size_t header_bytes;
};

/// Magic, version 1 and that the whole header is there.
void check_sidecar_header(std::span<const std::byte> content, const std::string& file,
                          const SidecarKind& kind);

/// That the reserved bytes from file offset `begin` on are 0.
void check_zeros(std::span<const std::byte> reserved, size_t begin, const std::string& file);

void check_size(uint64_t found, CheckedSize expected, const std::string& file);

/// That int64 offsets, [num_entries + 1], begin at 0 and end at `total`.
void check_offset_ends(const std::byte* offsets, int64_t num_entries, int64_t total,
                       const char* what, const std::string& file);

}  // namespace dsm
