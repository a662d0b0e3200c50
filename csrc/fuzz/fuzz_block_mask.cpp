// The bytes are the options of a block mask and cu_seqlens: options first, then entries of 4 bytes.
// The emulated kernel runs on any entries; where the CPU loop takes them, both say the same.

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/block_mask.h"
#include "fuzz/fuzz_target.h"

namespace dsm::fuzz {
namespace {

struct Options {
  uint16_t num_tokens;
  uint16_t query_block_size;
  uint16_t key_block_size;
  uint16_t window;
  uint16_t flags;  // 1: causal, 2: key bounds
};

constexpr int64_t most_tokens = 64;

/// A buffer on 16 bytes of exactly the size, so that AddressSanitizer sees a write past its end.
std::vector<Chunk> make_buffer(BlockMaskArguments& arguments) {
  std::vector<Chunk> buffer(static_cast<size_t>(ceil_div(block_mask_entries(arguments), 4)));
  arguments.buffer = reinterpret_cast<int32_t*>(buffer.data());
  return buffer;
}

void check_equal(const BlockLists& a, const BlockLists& b) {
  FUZZ_CHECK(std::equal(a.num_blocks, a.num_blocks + a.num_lines, b.num_blocks));
  FUZZ_CHECK(std::equal(a.full_num_blocks, a.full_num_blocks + a.num_lines, b.full_num_blocks));
  for (int64_t line = 0; line < a.num_lines; ++line) {
    const int64_t offset = line * a.capacity;
    const int32_t* partial = a.indices + offset;
    const int32_t* full = a.full_indices + offset;
    FUZZ_CHECK(std::equal(partial, partial + a.num_blocks[line], b.indices + offset));
    FUZZ_CHECK(std::equal(full, full + a.full_num_blocks[line], b.full_indices + offset));
  }
}

void run(const Options& options, const std::vector<int32_t>& cu_seqlens) {
  BlockMaskArguments arguments{cu_seqlens.data(),
                               static_cast<int64_t>(cu_seqlens.size()),
                               options.num_tokens % (most_tokens + 1),
                               1 + options.query_block_size,
                               1 + options.key_block_size,
                               (options.flags & 1) != 0,
                               1 + options.window,
                               (options.flags & 2) != 0,
                               nullptr};
  const int64_t n = arguments.num_tokens;
  const std::vector<Chunk> of_kernel = make_buffer(arguments);
  for (int64_t block = 0; block < block_mask_blocks(arguments); ++block) {
    for (int thread = 0; thread < threads_per_block; ++thread) {
      block_mask_body(arguments, block, thread);
    }
  }
  const BlockMaskArrays kernel(arguments);
  const std::vector<Chunk> of_loop = make_buffer(arguments);
  if (!succeeds([&] { block_mask(arguments); })) return;
  const BlockMaskArrays loop(arguments);
  check_equal(kernel.rows, loop.rows);
  check_equal(kernel.columns, loop.columns);
  if (!arguments.with_key_bounds) return;
  FUZZ_CHECK(std::equal(kernel.key_begin, kernel.key_begin + n, loop.key_begin));
  if (!arguments.causal) FUZZ_CHECK(std::equal(kernel.key_end, kernel.key_end + n, loop.key_end));
}

}  // namespace
}  // namespace dsm::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace dsm::fuzz;
  Options options;
  if (size < sizeof(options) + 2 * sizeof(int32_t)) return 0;
  std::memcpy(&options, data, sizeof(options));
  std::vector<int32_t> cu_seqlens((size - sizeof(options)) / sizeof(int32_t));
  std::memcpy(cu_seqlens.data(), data + sizeof(options), cu_seqlens.size() * sizeof(int32_t));
  run(options, cu_seqlens);
  return 0;
}
