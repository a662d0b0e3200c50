#include "core/sidecar_header.h"

#include <cstring>

#include "core/error.h"
#include "core/load.h"

namespace dsm {
namespace {

constexpr uint32_t sidecar_version = 1;

}  // namespace

void check_sidecar_header(std::span<const std::byte> content, const std::string& file,
                          const SidecarKind& kind) {
  if (content.size() < kind.header_bytes) {
    throw InputError(concat(file, ": is no ", kind.what, ": expected at least ", kind.header_bytes,
                            " bytes, found ", content.size()));
  }
  if (std::memcmp(content.data(), kind.magic.data(), kind.magic.size()) != 0) {
    throw InputError(concat(file, ": is no ", kind.what, ": expected the magic ", kind.magic,
                            ", found another"));
  }
  const uint32_t version = load<uint32_t>(content.data() + kind.magic.size());
  if (version != sidecar_version) {
    throw InputError(
        concat(file, ": expected ", kind.what, " version ", sidecar_version, ", found ", version));
  }
}

void check_zeros(std::span<const std::byte> reserved, size_t begin, const std::string& file) {
  for (size_t i = 0; i < reserved.size(); ++i) {
    if (reserved[i] == std::byte{0}) continue;
    throw InputError(concat(file, ": is damaged: expected 0 in byte ", begin + i, ", found ",
                            std::to_integer<int>(reserved[i])));
  }
}

void check_size(uint64_t found, CheckedSize expected, const std::string& file) {
  if (expected.equals(found)) return;
  throw InputError(concat(file, ": expected ",
                          expected.overflowed() ? "more than 2^64" : concat(expected.value()),
                          " bytes from the counts in its header, found ", found));
}

void check_offset_ends(const std::byte* offsets, int64_t num_entries, int64_t total,
                       const char* what, const std::string& file) {
  const int64_t first = load_entry<int64_t>(offsets, 0);
  const int64_t last = load_entry<int64_t>(offsets, num_entries);
  if (first == 0 && last == total) return;
  throw InputError(concat(file, ": is damaged: expected offsets of ", what, " from 0 to ", total,
                          ", found ", first, " to ", last));
}

}  // namespace dsm
