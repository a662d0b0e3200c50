#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace dsm {

/// Keeps the large blocks that buffers give back, for the buffers that follow: the first touch of
/// fresh memory is a good part of the time of packing, and most of it at 100 million documents.
///
/// Thread-safe. Every block in use keeps its arena alive; what lies in the arena is unmapped with
/// it.
class Arena : public std::enable_shared_from_this<Arena> {
 public:
  /// Blocks that would make more than `max_idle_bytes` lie in the arena are unmapped instead.
  explicit Arena(size_t max_idle_bytes = SIZE_MAX) : max_idle_bytes_(max_idle_bytes) {}
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  /// A block of at least `bytes` bytes, of unspecified content; throws std::bad_alloc.
  std::shared_ptr<std::byte> allocate(size_t bytes);

  /// Bytes that lie in the arena unused.
  size_t idle_bytes() const;

 private:
  struct Block {
    std::byte* data;
    size_t bytes;
  };

  Block take(size_t bytes);
  void give_back(Block block) noexcept;

  size_t max_idle_bytes_;
  mutable std::mutex mutex_;
  std::vector<Block> idle_;
  size_t idle_bytes_ = 0;
};

/// A block from `arena`, or where there is none from one that all share and that keeps at most 64
/// MiB. Small blocks are plain memory.
std::shared_ptr<std::byte> allocate_block(size_t bytes, Arena* arena);

}  // namespace dsm
