#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string_view>

namespace dsm {

inline constexpr int num_attribute_columns = 4;  // source, language, format, topic

/// One document's id and its value's number in each column. Text is what lies in the file: that it
/// is UTF-8 is for the reader to see.
struct AttributeRecord {
  std::string_view id;
  std::array<uint32_t, num_attribute_columns> codes;
};

/// PREFIX.attributes over bytes that the caller keeps alive: ids, and columns coded by a dictionary
/// of distinct values.
///
/// `parse` checks magic, version, number of columns, zeroed rest of the header, the size equation,
/// the ends of the offsets and the whole dictionary. Every fault is an InputError that names the
/// file, what was expected and what was found.
class AttributeTableView {
 public:
  /// `path` only names the file in messages.
  static AttributeTableView parse(std::span<const std::byte> content, std::filesystem::path path);

  int64_t num_documents() const { return num_documents_; }
  int64_t num_values(int column) const;

  /// Throws InputError where there is no such document, its id lies outside the text or a number
  /// outside the dictionary.
  AttributeRecord document(int64_t idx) const;

  /// The idx-th distinct value of a column.
  std::string_view value(int column, int64_t idx) const;

  /// uint32 [num_documents]: the number of each document's value.
  const std::byte* codes(int column) const;

  /// The text of all ids, one after the other.
  std::string_view id_text() const { return id_text_; }

  /// Checks every id's place and every number, O(num_documents).
  void check() const;

 private:
  explicit AttributeTableView(std::filesystem::path path);
  void check_dictionary() const;
  AttributeRecord record(int64_t idx) const;

  std::filesystem::path path_;
  int64_t num_documents_ = 0;
  std::array<int64_t, num_attribute_columns + 1> first_value_{};  ///< of each column, then all
  const std::byte* id_offsets_ = nullptr;
  const std::byte* value_offsets_ = nullptr;
  const std::byte* codes_ = nullptr;
  std::string_view value_text_;
  std::string_view id_text_;
};

}  // namespace dsm
