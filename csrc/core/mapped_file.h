#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>

namespace dsm {

/// A file mapped read-only for as long as the object lives. An empty file maps to no bytes.
class MappedFile {
 public:
  /// Throws InputError where the file is missing or cannot be mapped.
  explicit MappedFile(const std::filesystem::path& path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  uint64_t size() const { return size_; }
  const std::byte* data() const { return data_; }

 private:
  std::filesystem::path path_;
  uint64_t size_ = 0;
  const std::byte* data_ = nullptr;
};

}  // namespace dsm
