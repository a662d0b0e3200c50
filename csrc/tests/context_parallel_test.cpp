// The split's kernel, phase by phase and thread by thread, against the CPU loop and the definition.

#include "core/context_parallel.h"

#include <utility>
#include <vector>

#include "core/error.h"
#include "core/random.h"
#include "tests/check.h"
#include "tests/emulated_grid.h"
#include "tests/random_packs.h"

namespace {

using dsm::ContextParallelArguments;
using dsm::test::run_phase;
using dsm::test::ThreadOrder;

/// int64 on 16 bytes, of a size that may be odd.
class AlignedRow {
 public:
  explicit AlignedRow(int64_t size)
      : size_(static_cast<size_t>(size)), chunks_(size_ / 2 + 1, {untouched, untouched}) {}

  int64_t* data() { return reinterpret_cast<int64_t*>(chunks_.data()); }
  int64_t operator[](int64_t i) const {
    return reinterpret_cast<const int64_t*>(chunks_.data())[i];
  }
  bool guard_holds() const { return (*this)[static_cast<int64_t>(size_)] == untouched; }

 private:
  static constexpr uint64_t untouched = 0x7777777777777777u;
  size_t size_;
  std::vector<dsm::Chunk> chunks_;
};

/// Arguments and the arrays they point to.
struct Split {
  Split(const std::vector<int32_t>& cu_seqlens, int64_t num_tokens, int64_t cp_size,
        int64_t num_slots)
      : padded(cu_seqlens.size(), -7),
        token_idx(num_slots),
        position_ids(num_slots),
        inverse(num_tokens),
        arguments{cu_seqlens.data(), static_cast<int64_t>(cu_seqlens.size()),
                  num_tokens,        cp_size,
                  num_slots,         padded.data(),
                  token_idx.data(),  position_ids.data(),
                  inverse.data()} {}

  bool guards_hold() const {
    return token_idx.guard_holds() && position_ids.guard_holds() && inverse.guard_holds();
  }

  std::vector<int32_t> padded;
  AlignedRow token_idx, position_ids, inverse;
  ContextParallelArguments arguments;
};

void run_kernel(const ContextParallelArguments& arguments, ThreadOrder order) {
  for (int64_t block = 0; block < dsm::context_parallel_blocks(arguments); ++block) {
    std::vector<int64_t> sums(dsm::threads_per_block), next(dsm::threads_per_block);
    run_phase(order, [&](int thread) { dsm::sum_padded_lengths(arguments, sums.data(), thread); });
    for (int stride = 1; stride < dsm::threads_per_block; stride *= 2) {
      run_phase(order,
                [&](int thread) { dsm::scan_step(sums.data(), next.data(), stride, thread); });
      std::swap(sums, next);
    }
    run_phase(order, [&](int thread) {
      dsm::context_parallel_body(arguments, sums.data(), block, thread);
    });
  }
}

void check_equal(const Split& a, const Split& b) {
  CHECK(a.padded == b.padded);
  for (int64_t i = 0; i < a.arguments.num_slots; ++i) {
    CHECK(a.token_idx[i] == b.token_idx[i]);
    CHECK(a.position_ids[i] == b.position_ids[i]);
  }
  for (int64_t i = 0; i < a.arguments.num_tokens; ++i) CHECK(a.inverse[i] == b.inverse[i]);
}

/// Slot by slot: rank r walks its two chunks of every padded document, the tail among them.
void check_definition(const Split& split) {
  const ContextParallelArguments& arguments = split.arguments;
  const int64_t num_chunks = 2 * arguments.cp_size;
  int64_t slot = 0;
  for (int64_t rank = 0; rank < arguments.cp_size; ++rank) {
    int64_t padded_begin = 0;
    for (int64_t document = 0; document < arguments.num_entries; ++document) {
      const bool tail = document + 1 == arguments.num_entries;
      const int64_t begin = arguments.cu_seqlens[document];
      const int64_t length = tail ? 0 : arguments.cu_seqlens[document + 1] - begin;
      const int64_t padded = tail ? arguments.num_slots - padded_begin
                                  : (length + num_chunks - 1) / num_chunks * num_chunks;
      CHECK(split.padded[static_cast<size_t>(document)] == padded_begin);
      const int64_t size = padded / num_chunks;
      for (const int64_t chunk : {rank, num_chunks - 1 - rank}) {
        for (int64_t position = chunk * size; position < (chunk + 1) * size; ++position, ++slot) {
          CHECK(split.position_ids[slot] == position);
          CHECK(split.token_idx[slot] == (position < length ? begin + position : -1));
          if (position < length) CHECK(split.inverse[begin + position] == slot);
        }
      }
      padded_begin += padded;
    }
  }
  CHECK(slot == arguments.num_slots);
}

void kernel_and_cpu_loop_follow_the_definition() {
  dsm::RandomStream random(31);
  for (int round = 0; round < 400; ++round) {
    const int64_t num_tokens = 1 + static_cast<int64_t>(random.below(300));
    const int64_t cp_size = 1 + static_cast<int64_t>(random.below(6));
    // Now and then more documents than a block has threads.
    const int64_t most_documents = random.below(5) == 0 ? 1000 : 12;
    const std::vector<int32_t> cu_seqlens =
        dsm::test::random_cu_seqlens(random, num_tokens, most_documents);
    int64_t needed = 0;
    for (size_t d = 0; d + 1 < cu_seqlens.size(); ++d) {
      needed += dsm::ceil_div(cu_seqlens[d + 1] - cu_seqlens[d], 2 * cp_size) * 2 * cp_size;
    }
    const int64_t num_slots = needed + 2 * cp_size * static_cast<int64_t>(random.below(3));
    Split loop(cu_seqlens, num_tokens, cp_size, num_slots);
    dsm::context_parallel_split(loop.arguments);
    check_definition(loop);
    CHECK(loop.guards_hold());
    for (const ThreadOrder order : dsm::test::thread_orders) {
      Split kernel(cu_seqlens, num_tokens, cp_size, num_slots);
      run_kernel(kernel.arguments, order);
      check_equal(kernel, loop);
      CHECK(kernel.guards_hold());
    }
  }
}

// On CUDA neither the entries nor the number of slots is checked: nothing outside may be written,
// and no index may lead outside the pack.
void kernel_stays_inside_whatever_comes() {
  dsm::RandomStream random(37);
  for (int round = 0; round < 300; ++round) {
    const int64_t num_tokens = static_cast<int64_t>(random.below(200));
    const int64_t cp_size = 1 + static_cast<int64_t>(random.below(5));
    std::vector<int32_t> cu_seqlens(2 + random.below(20));
    for (int32_t& entry : cu_seqlens) {
      entry = static_cast<int32_t>(random.below(static_cast<uint64_t>(num_tokens) + 1));
    }
    const int64_t num_slots = 2 * cp_size * static_cast<int64_t>(random.below(30));
    Split split(cu_seqlens, num_tokens, cp_size, num_slots);
    run_kernel(split.arguments, ThreadOrder::ascending);
    CHECK(split.guards_hold());
    for (const int32_t entry : split.padded) CHECK(entry >= 0 && entry <= num_slots);
    for (int64_t i = 0; i < num_slots; ++i) {
      CHECK(split.token_idx[i] >= -1 && split.token_idx[i] < num_tokens);
    }
    for (int64_t i = 0; i < num_tokens; ++i) {
      CHECK(split.inverse[i] >= 0 && split.inverse[i] <= num_slots);
    }
  }
}

void too_few_slots_are_an_error() {
  const std::vector<int32_t> cu_seqlens{0, 5, 7};
  Split split(cu_seqlens, 7, 2, 8);
  bool refused = false;
  try {
    dsm::context_parallel_split(split.arguments);
  } catch (const dsm::InputError&) {
    refused = true;
  }
  CHECK(refused);
}

}  // namespace

int main() {
  kernel_and_cpu_loop_follow_the_definition();
  kernel_stays_inside_whatever_comes();
  too_few_slots_are_an_error();
}
