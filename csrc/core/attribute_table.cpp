#include "core/attribute_table.h"

#include <cassert>
#include <utility>

#include "core/checked_size.h"
#include "core/error.h"
#include "core/load.h"
#include "core/sidecar_header.h"

namespace dsm {
namespace {

constexpr size_t header_bytes = 128;
constexpr size_t zeros_begin = 72;
constexpr std::array<const char*, num_attribute_columns> column_names{"source", "language",
                                                                      "format", "topic"};

std::string_view text_at(const std::byte* from, uint64_t bytes) {
  return {reinterpret_cast<const char*>(from), static_cast<size_t>(bytes)};
}

}  // namespace

AttributeTableView AttributeTableView::parse(std::span<const std::byte> content,
                                             std::filesystem::path path) {
  AttributeTableView view(std::move(path));
  const std::string file = view.path_.string();
  check_sidecar_header(content, file, {"DSMATTRS", "attribute table", header_bytes});
  const std::byte* header = content.data();
  const uint32_t columns = load<uint32_t>(header + 12);
  if (columns != num_attribute_columns) {
    throw InputError(
        concat(file, ": expected ", num_attribute_columns, " columns, found ", columns));
  }
  check_zeros(content.subspan(zeros_begin, header_bytes - zeros_begin), zeros_begin, file);
  const uint64_t documents = load<uint64_t>(header + 16);
  const uint64_t value_bytes = load<uint64_t>(header + 56);
  const uint64_t id_bytes = load<uint64_t>(header + 64);
  CheckedSize values(0);
  for (int column = 0; column < num_attribute_columns; ++column) {
    values = values + CheckedSize(load_entry<uint64_t>(header + 24, column));
    // Where this overflows the size below does, and is refused before anything is read.
    view.first_value_[static_cast<size_t>(column) + 1] = static_cast<int64_t>(values.value());
  }
  check_size(content.size(),
             CheckedSize(header_bytes) +
                 CheckedSize(8) * (CheckedSize(documents) + CheckedSize(1)) +
                 CheckedSize(8) * (values + CheckedSize(1)) +
                 CheckedSize(4 * num_attribute_columns) * CheckedSize(documents) +
                 CheckedSize(value_bytes) + CheckedSize(id_bytes),
             file);
  view.num_documents_ = static_cast<int64_t>(documents);
  view.id_offsets_ = header + header_bytes;
  view.value_offsets_ = view.id_offsets_ + 8 * (view.num_documents_ + 1);
  view.codes_ = view.value_offsets_ + 8 * (view.first_value_.back() + 1);
  const std::byte* text = view.codes_ + 4 * num_attribute_columns * view.num_documents_;
  view.value_text_ = text_at(text, value_bytes);
  view.id_text_ = text_at(text + value_bytes, id_bytes);
  check_offset_ends(view.id_offsets_, view.num_documents_, static_cast<int64_t>(id_bytes), "ids",
                    file);
  check_offset_ends(view.value_offsets_, view.first_value_.back(),
                    static_cast<int64_t>(value_bytes), "values", file);
  view.check_dictionary();
  return view;
}

AttributeTableView::AttributeTableView(std::filesystem::path path) : path_(std::move(path)) {}

int64_t AttributeTableView::num_values(int column) const {
  assert(column >= 0 && column < num_attribute_columns);
  const size_t first = static_cast<size_t>(column);
  return first_value_[first + 1] - first_value_[first];
}

AttributeRecord AttributeTableView::document(int64_t idx) const {
  if (idx < 0 || idx >= num_documents_) {
    throw InputError(
        concat(path_.string(), ": has ", num_documents_, " documents, asked for document ", idx));
  }
  return record(idx);
}

std::string_view AttributeTableView::value(int column, int64_t idx) const {
  assert(idx >= 0 && idx < num_values(column));
  const int64_t entry = first_value_[static_cast<size_t>(column)] + idx;
  const int64_t begin = load_entry<int64_t>(value_offsets_, entry);
  const int64_t end = load_entry<int64_t>(value_offsets_, entry + 1);
  return value_text_.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
}

const std::byte* AttributeTableView::codes(int column) const {
  assert(column >= 0 && column < num_attribute_columns);
  return codes_ + 4 * num_documents_ * column;
}

void AttributeTableView::check() const {
  for (int64_t d = 0; d < num_documents_; ++d) {
    const std::string_view id = record(d).id;
    // The text as a whole may be UTF-8 while an id begins inside a character.
    if (!id.empty() && (static_cast<uint8_t>(id.front()) & 0xC0) == 0x80) {
      throw InputError(concat(path_.string(), ": is damaged: document ", d,
                              ": expected an id that begins with a character, found the middle ",
                              "of one"));
    }
  }
}

/// Values are read at open, so all of them are checked there.
void AttributeTableView::check_dictionary() const {
  for (int64_t i = 0; i < first_value_.back(); ++i) {
    const int64_t begin = load_entry<int64_t>(value_offsets_, i);
    const int64_t end = load_entry<int64_t>(value_offsets_, i + 1);
    if (begin < 0 || begin > end || end > static_cast<int64_t>(value_text_.size())) {
      throw InputError(concat(path_.string(), ": is damaged: value ", i,
                              ": expected offsets that rise from 0 to ", value_text_.size(),
                              ", found ", begin, " and ", end));
    }
  }
}

AttributeRecord AttributeTableView::record(int64_t idx) const {
  const int64_t begin = load_entry<int64_t>(id_offsets_, idx);
  const int64_t end = load_entry<int64_t>(id_offsets_, idx + 1);
  if (begin < 0 || begin > end || end > static_cast<int64_t>(id_text_.size())) {
    throw InputError(concat(path_.string(), ": is damaged: document ", idx,
                            ": expected offsets of ids that rise from 0 to ", id_text_.size(),
                            ", found ", begin, " and ", end));
  }
  AttributeRecord found{
      id_text_.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin)), {}};
  for (int column = 0; column < num_attribute_columns; ++column) {
    const uint32_t code = load_entry<uint32_t>(codes(column), idx);
    if (code >= static_cast<uint64_t>(num_values(column))) {
      throw InputError(concat(path_.string(), ": is damaged: document ", idx, " has ",
                              column_names[static_cast<size_t>(column)], " number ", code, " of ",
                              num_values(column)));
    }
    found.codes[static_cast<size_t>(column)] = code;
  }
  return found;
}

}  // namespace dsm
