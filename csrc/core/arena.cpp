#include "core/arena.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace dsm {
namespace {

constexpr size_t huge_page_bytes = size_t{2} << 20;
constexpr size_t page_bytes = 4096;
constexpr size_t cache_line_bytes = 64;
constexpr size_t smallest_mapped_bytes = size_t{64} << 10;
constexpr size_t shared_idle_bytes = size_t{64} << 20;

constexpr size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

/// Leaked on purpose: blocks may be given back while the process ends.
Arena& shared_arena() {
  static auto* arena = new std::shared_ptr<Arena>(std::make_shared<Arena>(shared_idle_bytes));
  return **arena;
}

}  // namespace

Arena::~Arena() {
  for (const Block& block : idle_) ::munmap(block.data, block.bytes);
}

std::shared_ptr<std::byte> Arena::allocate(size_t bytes) {
  const size_t unit = bytes >= huge_page_bytes ? huge_page_bytes : page_bytes;
  const Block block = take(round_up(bytes == 0 ? 1 : bytes, unit));
  return {block.data, [self = shared_from_this(), block](std::byte*) { self->give_back(block); }};
}

size_t Arena::idle_bytes() const {
  const std::lock_guard lock(mutex_);
  return idle_bytes_;
}

Arena::Block Arena::take(size_t bytes) {
  {
    const std::lock_guard lock(mutex_);
    auto best = idle_.end();
    for (auto it = idle_.begin(); it != idle_.end(); ++it) {
      const bool fits = it->bytes >= bytes && it->bytes / 2 <= bytes;
      if (fits && (best == idle_.end() || it->bytes < best->bytes)) best = it;
    }
    if (best != idle_.end()) {
      const Block block = *best;
      idle_.erase(best);
      idle_bytes_ -= block.bytes;
      return block;
    }
  }
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  if (bytes >= huge_page_bytes)
    ::madvise(data, bytes, MADV_HUGEPAGE);  // a wish, not always granted
  return {static_cast<std::byte*>(data), bytes};
}

void Arena::give_back(Block block) noexcept {
  try {
    const std::lock_guard lock(mutex_);
    if (block.bytes <= max_idle_bytes_ - idle_bytes_) {
      idle_.push_back(block);
      idle_bytes_ += block.bytes;
      return;
    }
  } catch (const std::bad_alloc&) {  // no room to remember it
  }
  ::munmap(block.data, block.bytes);
}

std::shared_ptr<std::byte> allocate_block(size_t bytes, Arena* arena) {
  if (bytes >= smallest_mapped_bytes) {
    return arena != nullptr ? arena->allocate(bytes) : shared_arena().allocate(bytes);
  }
  void* data =
      std::aligned_alloc(cache_line_bytes, round_up(bytes == 0 ? 1 : bytes, cache_line_bytes));
  if (data == nullptr) throw std::bad_alloc();
  return {static_cast<std::byte*>(data), [](std::byte* memory) { std::free(memory); }};
}

}  // namespace dsm
