// Checks of the dataset files below Python: parses of any bytes in buffers of exactly their size,
// so that AddressSanitizer sees a read past an end, and sizes that overflow.

#include "core/indexed_dataset.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "core/attribute_table.h"
#include "core/error.h"
#include "core/index_view.h"
#include "core/span_table.h"
#include "tests/check.h"

namespace {

using Bytes = std::vector<std::byte>;

template <class T>
void append(Bytes& bytes, T value) {
  const auto* raw = reinterpret_cast<const std::byte*>(&value);
  bytes.insert(bytes.end(), raw, raw + sizeof(T));
}

void append_text(Bytes& bytes, std::string_view text) {
  for (const char character : text) append(bytes, character);
}

template <class T>
void overwrite(Bytes& bytes, size_t offset, T value) {
  std::memcpy(bytes.data() + offset, &value, sizeof(T));
}

/// An .idx of int32 tokens.
Bytes make_index(const std::vector<int32_t>& lengths, const std::vector<int64_t>& ends) {
  Bytes bytes;
  append_text(bytes, std::string_view("MMIDIDX\0\0", 9));
  append(bytes, uint64_t{1});
  append(bytes, static_cast<uint8_t>(dsm::TokenType::int32));
  append(bytes, static_cast<uint64_t>(lengths.size()));
  append(bytes, static_cast<uint64_t>(ends.size()));
  for (const int32_t length : lengths) append(bytes, length);
  int64_t pointer = 0;
  for (const int32_t length : lengths) {
    append(bytes, pointer);
    pointer += 4 * length;
  }
  for (const int64_t end : ends) append(bytes, end);
  return bytes;
}

uint64_t bin_size(const std::vector<int32_t>& lengths) {
  return 4 * static_cast<uint64_t>(std::accumulate(lengths.begin(), lengths.end(), int64_t{0}));
}

/// A .spans of three documents: two spans, none, one.
Bytes make_spans() {
  Bytes bytes;
  append_text(bytes, "DSMSPANS");
  append(bytes, uint32_t{1});
  append(bytes, uint32_t{0});
  for (const uint64_t count : {3, 3, 1 + 1 + 3}) append(bytes, count);
  bytes.resize(64);
  for (const int64_t offset : {0, 2, 2, 3}) append(bytes, offset);
  for (const int32_t position : {0, 2, 3, 4, 1, 4}) append(bytes, position);
  return bytes;
}

/// An .attributes of two documents with the ids "a" and "bc".
Bytes make_attributes() {
  Bytes bytes;
  append_text(bytes, "DSMATTRS");
  append(bytes, uint32_t{1});
  append(bytes, uint32_t{4});
  for (const uint64_t count : {2, 2, 1, 1, 1, 10, 3}) append(bytes, count);
  bytes.resize(128);
  for (const int64_t offset : {0, 1, 3}) append(bytes, offset);
  for (const int64_t offset : {0, 2, 4, 6, 8, 10}) append(bytes, offset);
  for (const uint32_t code : {1, 0, 0, 0, 0, 0, 0, 0}) append(bytes, code);
  append_text(bytes, "s0s1encot.");
  append_text(bytes, "abc");
  return bytes;
}

bool is_refused(const std::function<void()>& action) {
  try {
    action();
    return false;
  } catch (const dsm::InputError&) {
    return true;
  }
}

/// Accesses first: what the check of all would refuse must hold by itself.
void read_index(const Bytes& bytes, uint64_t tokens_size) {
  const auto index = dsm::IndexView::parse(bytes, tokens_size, "x");
  std::vector<int32_t> lengths(static_cast<size_t>(index.num_documents()));
  const bool has_lengths = !is_refused([&] { index.document_lengths(lengths); });
  for (int64_t d = 0; d < index.num_documents(); ++d) {
    dsm::TokenExtent document{0, 0};
    if (is_refused([&] { document = index.document(d); })) continue;
    CHECK(document.offset >= 0 && document.length >= 0);
    CHECK(static_cast<uint64_t>(document.offset + 4 * document.length) <= tokens_size);
    if (has_lengths) CHECK(document.length == lengths[static_cast<size_t>(d)]);
  }
  index.check_tables();
}

void read_spans(const Bytes& bytes) {
  const auto table = dsm::SpanTableView::parse(bytes, "x");
  for (int64_t d = 0; d < table.num_documents(); ++d) {
    is_refused([&] {
      const auto [first, last] = table.document(d);
      CHECK(0 <= first && first <= last && last <= table.num_spans());
    });
  }
  table.check(std::vector<int32_t>{4, 1, 4});
}

void read_attributes(const Bytes& bytes) {
  const auto table = dsm::AttributeTableView::parse(bytes, "x");
  for (int64_t d = 0; d < table.num_documents(); ++d) {
    is_refused([&] {
      const dsm::AttributeRecord record = table.document(d);
      CHECK(record.id.size() <= table.id_text().size());
      for (int column = 0; column < dsm::num_attribute_columns; ++column) {
        CHECK(record.codes[static_cast<size_t>(column)] < table.num_values(column));
      }
    });
  }
  table.check();
}

/// Reads every truncation and every single flipped bit; a flip may stay unseen, as a checksum finds
/// it, but nothing outside the buffer is read.
void read_damaged(const Bytes& whole, const std::function<void(const Bytes&)>& read) {
  read(whole);
  for (size_t size = 0; size < whole.size(); ++size) {
    const Bytes part(whole.begin(), whole.begin() + static_cast<std::ptrdiff_t>(size));
    CHECK(is_refused([&] { read(part); }));
  }
  for (size_t bit = 0; bit < 8 * whole.size(); ++bit) {
    Bytes damaged = whole;
    damaged[bit / 8] ^= std::byte{1} << (bit % 8);
    is_refused([&] { read(damaged); });
  }
}

void damaged_files_are_refused_or_read_inside_their_bytes() {
  const std::vector<int32_t> lengths{2, 0, 3, 1};
  read_damaged(make_index(lengths, {0, 1, 3, 3, 4}),
               [&](const Bytes& bytes) { read_index(bytes, bin_size(lengths)); });
  read_damaged(make_spans(), read_spans);
  read_damaged(make_attributes(), read_attributes);
}

void counts_that_overflow_are_refused() {
  for (int shift = 0; shift < 64; ++shift) {
    const uint64_t huge = ~uint64_t{0} >> shift;
    for (const size_t offset : {18, 26}) {
      Bytes index = make_index({1}, {0, 1});
      if (huge == 1 || huge == 0) continue;
      overwrite(index, offset, huge);
      CHECK(is_refused([&] { read_index(index, 4); }));
    }
    for (const size_t offset : {16, 24}) {
      Bytes spans = make_spans();
      if (huge == 3) continue;
      overwrite(spans, offset, huge);
      CHECK(is_refused([&] { read_spans(spans); }));
    }
    for (size_t offset = 16; offset < 72; offset += 8) {
      Bytes attributes = make_attributes();
      Bytes unchanged = attributes;
      overwrite(attributes, offset, huge);
      if (attributes != unchanged) CHECK(is_refused([&] { read_attributes(attributes); }));
    }
  }
}

void pointers_near_the_largest_integer_do_not_overflow() {
  for (const int64_t pointer : {INT64_MAX, INT64_MAX - 3, INT64_MIN, int64_t{-4}}) {
    Bytes index = make_index({1, 1, 1}, {0, 3});
    overwrite(index, 34 + 12 + 8, pointer);
    const auto view = dsm::IndexView::parse(index, 12, "x");
    CHECK(is_refused([&] { view.document(0); }));
    CHECK(is_refused([&] { view.sequence(1); }));
    CHECK(is_refused([&] { view.check_tables(); }));
  }
}

// Pointers that fit each other and the lengths, but lie beyond the .bin or between two tokens.
void sequences_outside_the_tokens_are_refused() {
  for (const int64_t pointer : {int64_t{100}, int64_t{5}, int64_t{-8}}) {
    Bytes index = make_index({1, 1, 1, 1}, {0, 1, 2, 3, 4});
    overwrite(index, 34 + 16 + 8, pointer);
    overwrite(index, 34 + 16 + 16, pointer + 4);
    const auto view = dsm::IndexView::parse(index, 16, "x");
    CHECK(is_refused([&] { view.document(1); }));
    CHECK(is_refused([&] { view.sequence(1); }));
  }
}

void a_document_of_many_sequences_is_one_extent() {
  const auto index = make_index({2, 0, 3, 1}, {0, 0, 3, 4});
  const auto view = dsm::IndexView::parse(index, 24, "x");
  CHECK(view.num_documents() == 3 && view.num_sequences() == 4);
  CHECK(view.document(0).length == 0);
  CHECK(view.document(1).offset == 0 && view.document(1).length == 5);
  CHECK(view.document(2).offset == 20 && view.document(2).length == 1);
  CHECK(view.sequence(2).offset == 8 && view.sequence(2).length == 3);
}

void spans_are_checked_against_their_documents() {
  const Bytes spans = make_spans();
  const auto table = dsm::SpanTableView::parse(spans, "x");
  table.check(std::vector<int32_t>{4, 0, 4});
  CHECK(is_refused([&] { table.check(std::vector<int32_t>{3, 1, 4}); }));
  CHECK(is_refused([&] { table.check(std::vector<int32_t>{4, 1}); }));
  Bytes miscounted = spans;
  overwrite(miscounted, 32, uint64_t{6});
  const auto other = dsm::SpanTableView::parse(miscounted, "x");
  CHECK(is_refused([&] { other.check(std::vector<int32_t>{4, 1, 4}); }));
}

void many_documents_are_those_one_by_one() {
  const auto folder = std::filesystem::temp_directory_path() / "dsm_indexed_dataset_test";
  std::filesystem::create_directories(folder);
  const std::string prefix = (folder / "x").string();
  std::vector<int32_t> lengths(100);
  std::iota(lengths.begin(), lengths.end(), 0);
  std::vector<int64_t> ends(lengths.size() + 1);
  std::iota(ends.begin(), ends.end(), 0);
  const Bytes index = make_index(lengths, ends);
  std::vector<int32_t> tokens(bin_size(lengths) / 4);
  std::iota(tokens.begin(), tokens.end(), 0);
  std::ofstream(prefix + ".idx", std::ios::binary)
      .write(reinterpret_cast<const char*>(index.data()),
             static_cast<std::streamsize>(index.size()));
  std::ofstream(prefix + ".bin", std::ios::binary)
      .write(reinterpret_cast<const char*>(tokens.data()),
             static_cast<std::streamsize>(4 * tokens.size()));

  const dsm::IndexedDataset dataset(prefix);
  std::vector<int64_t> wanted;
  for (int64_t i = 0; i < 300; ++i) wanted.push_back(i * 37 % 100);
  const auto views = dataset.documents(wanted);
  int64_t total = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    CHECK(views[i].data == dataset.document(wanted[i]).data);
    CHECK(views[i].length == wanted[i]);  // the i-th document has i tokens
    total += views[i].length;
  }
  std::vector<int32_t> copy(static_cast<size_t>(total));
  dsm::copy_documents(views, 4, reinterpret_cast<std::byte*>(copy.data()));
  size_t position = 0;
  for (const int64_t document : wanted) {
    for (int64_t i = 0; i < document; ++i) {
      CHECK(copy[position++] == document * (document - 1) / 2 + i);
    }
  }
  wanted.back() = 100;
  CHECK(is_refused([&] { dataset.documents(wanted); }));
  dataset.check_token_ids(4950);
  CHECK(is_refused([&] { dataset.check_token_ids(4949); }));
  std::filesystem::remove_all(folder);
}

}  // namespace

int main() {
  damaged_files_are_refused_or_read_inside_their_bytes();
  counts_that_overflow_are_refused();
  pointers_near_the_largest_integer_do_not_overflow();
  sequences_outside_the_tokens_are_refused();
  a_document_of_many_sequences_is_one_extent();
  spans_are_checked_against_their_documents();
  many_documents_are_those_one_by_one();
  return 0;
}
