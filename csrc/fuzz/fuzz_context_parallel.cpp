// The bytes are the options of a split and cu_seqlens: options first, then entries of 4 bytes. The
// emulated kernel runs on any entries within the pack; where the CPU loop takes them, both say the
// same.

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "core/context_parallel.h"
#include "fuzz/fuzz_target.h"

namespace dsm::fuzz {
namespace {

struct Options {
  uint16_t num_tokens;
  uint16_t ranks_less_one;
  uint16_t chunks_of_slots;  // slots in units of 2 * cp_size
};

constexpr int64_t most_tokens = 64;
constexpr int64_t most_ranks = 8;

/// On the heap, on 16 bytes, so that AddressSanitizer sees a write past the end.
struct Outputs {
  explicit Outputs(ContextParallelArguments& arguments)
      : padded(static_cast<size_t>(arguments.num_entries)),
        token_idx(static_cast<size_t>(arguments.num_slots)),
        position_ids(token_idx.size()),
        inverse(static_cast<size_t>(arguments.num_tokens)) {
    arguments.cu_seqlens_padded = padded.data();
    arguments.token_idx = token_idx.data();
    arguments.position_ids = position_ids.data();
    arguments.inverse = inverse.data();
  }

  bool operator==(const Outputs&) const = default;

  std::vector<int32_t> padded;
  std::vector<int64_t> token_idx, position_ids, inverse;
};

void run_kernel(const ContextParallelArguments& arguments) {
  for (int64_t block = 0; block < context_parallel_blocks(arguments); ++block) {
    std::vector<int64_t> sums(threads_per_block), next(threads_per_block);
    for (int i = 0; i < threads_per_block; ++i) sum_padded_lengths(arguments, sums.data(), i);
    for (int stride = 1; stride < threads_per_block; stride *= 2) {
      for (int i = 0; i < threads_per_block; ++i) scan_step(sums.data(), next.data(), stride, i);
      std::swap(sums, next);
    }
    for (int i = 0; i < threads_per_block; ++i) {
      context_parallel_body(arguments, sums.data(), block, i);
    }
  }
}

void run(const Options& options, std::vector<int32_t>& cu_seqlens) {
  const int64_t num_tokens = options.num_tokens % (most_tokens + 1);
  const int64_t cp_size = 1 + options.ranks_less_one % most_ranks;
  const int64_t num_slots = 2 * cp_size * (options.chunks_of_slots % most_tokens);
  for (int32_t& entry : cu_seqlens) {
    entry = std::clamp(entry, 0, static_cast<int32_t>(num_tokens));
  }
  ContextParallelArguments arguments{cu_seqlens.data(),
                                     static_cast<int64_t>(cu_seqlens.size()),
                                     num_tokens,
                                     cp_size,
                                     num_slots,
                                     nullptr,
                                     nullptr,
                                     nullptr,
                                     nullptr};
  const Outputs kernel(arguments);
  run_kernel(arguments);
  for (const int64_t token : kernel.token_idx) FUZZ_CHECK(token >= -1 && token < num_tokens);
  for (const int64_t slot : kernel.inverse) FUZZ_CHECK(slot >= 0 && slot <= num_slots);
  const Outputs loop(arguments);
  if (succeeds([&] { context_parallel_split(arguments); })) FUZZ_CHECK(kernel == loop);
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
