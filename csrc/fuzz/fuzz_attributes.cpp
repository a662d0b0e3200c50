// The bytes are an .attributes.

#include <vector>

#include "core/attribute_table.h"
#include "fuzz/fuzz_target.h"

namespace dsm::fuzz {
namespace {

uint64_t sum_of(std::string_view text) {
  return sum(std::as_bytes(std::span(text.data(), text.size())));
}

void read_all(const AttributeTableView& table) {
  const bool is_sound = succeeds([&] { table.check(); });
  consume(sum_of(table.id_text()));
  for (int column = 0; column < num_attribute_columns; ++column) {
    consume(sum({table.codes(column), 4 * static_cast<size_t>(table.num_documents())}));
    for (int64_t i = 0; i < table.num_values(column); ++i) consume(sum_of(table.value(column, i)));
  }
  for (int64_t d = -1; d <= table.num_documents(); ++d) {
    const bool is_read = succeeds([&] {
      const AttributeRecord record = table.document(d);
      consume(sum_of(record.id));
      for (int column = 0; column < num_attribute_columns; ++column) {
        const int64_t code = record.codes[static_cast<size_t>(column)];
        FUZZ_CHECK(code < table.num_values(column));
        consume(sum_of(table.value(column, code)));
      }
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
  succeeds([&] { read_all(dsm::AttributeTableView::parse(content, "fuzz")); });
  return 0;
}
