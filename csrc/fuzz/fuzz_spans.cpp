// The bytes are a .spans.

#include <algorithm>
#include <vector>

#include "core/span_table.h"
#include "fuzz/fuzz_target.h"

namespace dsm::fuzz {
namespace {

constexpr int32_t document_length = 1000;  // as long as any in the seeds

void read_all(const SpanTableView& table) {
  const auto documents = static_cast<size_t>(table.num_documents());
  const std::vector<int32_t> lengths(documents, document_length);
  const bool is_sound = succeeds([&] { table.check(lengths); });
  FUZZ_CHECK(!succeeds([&] { table.check(std::vector<int32_t>(documents + 1)); }));
  consume(sum({table.offsets(), 8 * (documents + 1)}));
  consume(sum({table.spans(), 8 * static_cast<size_t>(table.num_spans())}));
  for (int64_t d = -1; d <= table.num_documents(); ++d) {
    const bool is_read = succeeds([&] {
      const auto [first, last] = table.document(d);
      FUZZ_CHECK(0 <= first && first <= last && last <= table.num_spans());
    });
    const bool exists = d >= 0 && d < table.num_documents();
    FUZZ_CHECK(exists || !is_read);
    FUZZ_CHECK(!is_sound || is_read == exists);
  }
}

}  // namespace
}  // namespace dsm::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace dsm::fuzz;
  const std::vector<std::byte> content = exact_copy(data, size);
  succeeds([&] { read_all(dsm::SpanTableView::parse(content, "fuzz")); });
  return 0;
}
