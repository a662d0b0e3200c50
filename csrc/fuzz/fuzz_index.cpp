// The bytes are an .idx. The .bin has the size that the index claims, as far as it can be said, so
// that what lies behind that check is reached; any document or sequence may then be asked for.

#include <algorithm>
#include <vector>

#include "core/checked_size.h"
#include "core/index_view.h"
#include "core/load.h"
#include "fuzz/fuzz_target.h"

namespace dsm::fuzz {
namespace {

constexpr uint64_t largest_bin = 1 << 16;

/// The end of the last sequence, or 0 where the header does not lead to one.
uint64_t claimed_bin_size(std::span<const std::byte> index) {
  if (index.size() < 34) return 0;
  const uint64_t sequences = load<uint64_t>(index.data() + 18);
  const CheckedSize end = CheckedSize(34) + CheckedSize(12) * CheckedSize(sequences);
  if (sequences == 0 || end.overflowed() || end.value() > index.size()) return 0;
  const int width =
      static_cast<int>(token_bytes(static_cast<TokenType>(std::to_integer<uint8_t>(index[17]))));
  const uint64_t length = load<uint32_t>(index.data() + 34 + 4 * (sequences - 1));
  const uint64_t begin = load<uint64_t>(index.data() + end.value() - 8);
  const CheckedSize size =
      CheckedSize(begin) + CheckedSize(length) * CheckedSize(static_cast<uint64_t>(width));
  return size.overflowed() || size.value() > largest_bin ? 0 : size.value();
}

void read_all(const IndexView& index, std::span<const std::byte> tokens) {
  const auto read = [&](TokenExtent extent) {
    const auto bytes = static_cast<size_t>(extent.length * token_bytes(index.token_type()));
    FUZZ_CHECK(extent.offset >= 0 && extent.length >= 0);
    FUZZ_CHECK(static_cast<size_t>(extent.offset) + bytes <= tokens.size());
    consume(sum(tokens.subspan(static_cast<size_t>(extent.offset), bytes)));
    return extent.length;
  };
  const bool is_sound = succeeds([&] { index.check_tables(); });
  std::vector<int32_t> lengths(static_cast<size_t>(index.num_documents()));
  const bool has_lengths = succeeds([&] { index.document_lengths(lengths); });
  FUZZ_CHECK(!is_sound || has_lengths);  // no .bin here is long enough for a length above 2^31
  for (int64_t d = -1; d <= index.num_documents(); ++d) {
    index.prefetch_document_table(d);
    index.prefetch_sequence_tables(d);
    int64_t length = -1;
    const bool is_read = succeeds([&] { length = read(index.document(d)); });
    const bool exists = d >= 0 && d < index.num_documents();
    FUZZ_CHECK(exists || !is_read);
    FUZZ_CHECK(!is_sound || is_read == exists);
    if (is_read && has_lengths) FUZZ_CHECK(length == lengths[static_cast<size_t>(d)]);
  }
  for (int64_t i = -1; i <= index.num_sequences(); ++i) {
    const bool is_read = succeeds([&] { read(index.sequence(i)); });
    FUZZ_CHECK(!is_sound || is_read == (i >= 0 && i < index.num_sequences()));
  }
}

}  // namespace
}  // namespace dsm::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace dsm::fuzz;
  const std::vector<std::byte> index = exact_copy(data, size);
  const std::vector<std::byte> tokens(claimed_bin_size(index));
  succeeds([&] { read_all(dsm::IndexView::parse(index, tokens.size(), "fuzz"), tokens); });
  return 0;
}
