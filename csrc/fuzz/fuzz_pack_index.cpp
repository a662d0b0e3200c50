// The bytes are a pack-index file, checksums and all; those are not compared here.

#include <cstring>
#include <vector>

#include "core/buffer.h"
#include "core/pack_file.h"
#include "core/pack_statistics.h"
#include "fuzz/fuzz_target.h"

namespace dsm::fuzz {
namespace {

constexpr int64_t most_documents = 4096;

template <class Id>
void read_packs(std::span<const std::byte> content, const PackFile& file) {
  const auto packs = static_cast<size_t>(file.num_packs);
  const auto* offsets = reinterpret_cast<const int64_t*>(content.data() + pack_header_bytes);
  const auto* ids = reinterpret_cast<const Id*>(content.data() + file.documents_begin);
  const auto* begins = reinterpret_cast<const int32_t*>(content.data() + file.begins_begin);
  for (size_t p = 0; p < packs; ++p) FUZZ_CHECK(offsets[p] < offsets[p + 1]);
  // Lengths that the bytes choose: short, of the capacity, and as long as there are.
  std::vector<int32_t> lengths(static_cast<size_t>(file.ledger.documents));
  for (size_t d = 0; d < lengths.size(); ++d) {
    const int32_t choices[] = {10, static_cast<int32_t>(file.capacity), INT32_MAX, 1};
    lengths[d] = choices[(file.seed >> (2 * (d % 32))) & 3];
  }
  const PackLayout layout{file.capacity, file.alignment, file.has_begins,
                          file.overlong == OverlongPolicy::truncate};
  succeeds([&] {
    const PackStatistics statistics = pack_statistics<Id>(
        lengths, layout, {offsets, packs + 1}, {ids, static_cast<size_t>(file.num_pieces)},
        {begins, file.has_begins ? packs : 0});
    check_coverage<Id>(lengths, layout, {offsets, packs + 1},
                       {ids, static_cast<size_t>(file.num_pieces)},
                       {begins, file.has_begins ? packs : 0}, file.ledger);
    FUZZ_CHECK(statistics.num_packs == file.num_packs);
    FUZZ_CHECK(statistics.tokens + statistics.alignment_padding + statistics.tail_padding ==
               file.num_packs * file.capacity);
  });
}

void read_all(std::span<const std::byte> content) {
  const PackFile file = parse_pack_file(content, "fuzz");
  std::vector<std::byte> header(static_cast<size_t>(pack_header_bytes));
  write_pack_header(file, header);
  FUZZ_CHECK(std::memcmp(header.data(), content.data(), header.size()) == 0);
  check_pack_arrays(content, "fuzz");
  if (file.ledger.documents > most_documents) return;
  file.id_bytes == 4 ? read_packs<int32_t>(content, file) : read_packs<int64_t>(content, file);
}

}  // namespace
}  // namespace dsm::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace dsm::fuzz;
  const std::vector<std::byte> content = exact_copy(data, size);  // aligned for any type
  succeeds([&] { read_all(content); });
  return 0;
}
