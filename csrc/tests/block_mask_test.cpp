// The block mask's kernel, thread by thread, and the CPU loop, against the dense mask.

#include "core/block_mask.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "core/error.h"
#include "core/random.h"
#include "tests/check.h"
#include "tests/emulated_grid.h"
#include "tests/random_packs.h"

namespace {

using dsm::BlockLists;
using dsm::BlockMaskArguments;
using dsm::BlockMaskArrays;
using dsm::test::ThreadOrder;

constexpr int32_t untouched = -7;

/// A buffer on 16 bytes between entries that must stay as they are.
class GuardedBuffer {
 public:
  explicit GuardedBuffer(BlockMaskArguments& arguments)
      : size_(dsm::block_mask_entries(arguments)), chunks_(static_cast<size_t>(size_ + 3) / 4 + 4) {
    int32_t* entries = reinterpret_cast<int32_t*>(chunks_.data());
    std::fill(entries, entries + chunks_.size() * 4, untouched);
    arguments.buffer = entries + 8;
    begin_ = arguments.buffer;
  }

  bool guards_hold() const {
    const int32_t* entries = reinterpret_cast<const int32_t*>(chunks_.data());
    for (const int32_t* entry = entries; entry < entries + chunks_.size() * 4; ++entry) {
      if ((entry < begin_ || entry >= begin_ + size_) && *entry != untouched) return false;
    }
    return true;
  }

 private:
  int64_t size_;
  std::vector<dsm::Chunk> chunks_;
  int32_t* begin_;
};

void buffer_has_as_many_entries_as_the_arrays(const BlockMaskArguments& arguments) {
  CHECK(BlockMaskArrays(arguments).columns.end() - arguments.buffer ==
        dsm::block_mask_entries(arguments));
}

void run_kernel(const BlockMaskArguments& arguments, ThreadOrder order) {
  dsm::test::run_grid(dsm::block_mask_blocks(arguments), order, [&](int64_t block, int thread) {
    dsm::block_mask_body(arguments, block, thread);
  });
}

std::vector<uint8_t> dense_mask(const BlockMaskArguments& arguments) {
  const int64_t n = arguments.num_tokens;
  std::vector<uint8_t> mask(static_cast<size_t>(n * n), 0);
  for (int64_t document = 0; document + 1 < arguments.num_entries; ++document) {
    const int64_t begin = arguments.cu_seqlens[document];
    const int64_t end = arguments.cu_seqlens[document + 1];
    for (int64_t query = begin; query < end; ++query) {
      for (int64_t key = begin; key < end; ++key) {
        const int64_t distance = query - key;
        mask[static_cast<size_t>(query * n + key)] = distance < arguments.window &&
                                                     -distance < arguments.window &&
                                                     (!arguments.causal || distance >= 0);
      }
    }
  }
  return mask;
}

/// The lists of one direction by counting all places of each block.
void check_lists(const BlockMaskArguments& arguments, const BlockLists& lists, bool rows,
                 const std::vector<uint8_t>& mask) {
  const int64_t n = arguments.num_tokens;
  const int64_t size = rows ? arguments.query_block_size : arguments.key_block_size;
  const int64_t other_size = rows ? arguments.key_block_size : arguments.query_block_size;
  for (int64_t line = 0; line < lists.num_lines; ++line) {
    std::vector<int32_t> partial, full;
    for (int64_t other = 0; other < lists.capacity; ++other) {
      int64_t count = 0;
      for (int64_t i = line * size; i < std::min(n, (line + 1) * size); ++i) {
        for (int64_t j = other * other_size; j < std::min(n, (other + 1) * other_size); ++j) {
          count += mask[static_cast<size_t>(rows ? i * n + j : j * n + i)];
        }
      }
      if (count == size * other_size) {
        full.push_back(static_cast<int32_t>(other));
      } else if (count > 0) {
        partial.push_back(static_cast<int32_t>(other));
      }
    }
    CHECK(lists.num_blocks[line] == static_cast<int32_t>(partial.size()));
    CHECK(lists.full_num_blocks[line] == static_cast<int32_t>(full.size()));
    CHECK(std::equal(partial.begin(), partial.end(), lists.indices + line * lists.capacity));
    CHECK(std::equal(full.begin(), full.end(), lists.full_indices + line * lists.capacity));
  }
}

void check_key_bounds(const BlockMaskArguments& arguments, const std::vector<uint8_t>& mask) {
  const int64_t n = arguments.num_tokens;
  const BlockMaskArrays arrays(arguments);
  for (int64_t query = 0; query < n; ++query) {
    const int64_t end = arguments.causal ? query + 1 : arrays.key_end[query];
    for (int64_t key = 0; key < n; ++key) {
      const bool inside = key >= arrays.key_begin[query] && key < end;
      CHECK(inside == (mask[static_cast<size_t>(query * n + key)] != 0));
    }
  }
}

void check_mask(const BlockMaskArguments& arguments) {
  const std::vector<uint8_t> mask = dense_mask(arguments);
  const BlockMaskArrays arrays(arguments);
  check_lists(arguments, arrays.rows, true, mask);
  check_lists(arguments, arrays.columns, false, mask);
  if (arguments.with_key_bounds) check_key_bounds(arguments, mask);
}

void kernel_and_cpu_loop_equal_the_dense_mask() {
  dsm::RandomStream random(17);
  const int64_t sizes[] = {1, 3, 7, 16, 33, 64, 200};
  const int64_t lengths[] = {1, 2, 15, 16, 17, 64, 65, 127, 130};
  for (int round = 0; round < 600; ++round) {
    const int64_t num_tokens = lengths[random.below(std::size(lengths))];
    const std::vector<int32_t> cu_seqlens = dsm::test::random_cu_seqlens(random, num_tokens, 12);
    const int64_t windows[] = {num_tokens, 1, 2, 16, 50};
    BlockMaskArguments arguments{cu_seqlens.data(),
                                 static_cast<int64_t>(cu_seqlens.size()),
                                 num_tokens,
                                 sizes[random.below(std::size(sizes))],
                                 sizes[random.below(std::size(sizes))],
                                 random.below(2) == 0,
                                 windows[random.below(std::size(windows))],
                                 random.below(4) != 0,
                                 nullptr};
    for (const ThreadOrder order : dsm::test::thread_orders) {
      const GuardedBuffer of_kernel(arguments);
      buffer_has_as_many_entries_as_the_arrays(arguments);
      run_kernel(arguments, order);
      check_mask(arguments);
      CHECK(of_kernel.guards_hold());
    }
    const GuardedBuffer of_loop(arguments);
    dsm::block_mask(arguments);
    check_mask(arguments);
    CHECK(of_loop.guards_hold());
  }
}

// On CUDA cu_seqlens is not checked: whatever it holds, nothing else is written and no block
// outside the mask is named.
void kernel_stays_inside_whatever_cu_seqlens_holds() {
  dsm::RandomStream random(23);
  for (int round = 0; round < 300; ++round) {
    const int64_t num_tokens = 1 + static_cast<int64_t>(random.below(100));
    std::vector<int32_t> cu_seqlens(2 + random.below(8));
    for (int32_t& entry : cu_seqlens) {
      entry = random.below(4) == 0
                  ? static_cast<int32_t>(random.next())
                  : static_cast<int32_t>(random.below(static_cast<uint64_t>(num_tokens) + 1));
    }
    BlockMaskArguments arguments{cu_seqlens.data(),
                                 static_cast<int64_t>(cu_seqlens.size()),
                                 num_tokens,
                                 1 + static_cast<int64_t>(random.below(20)),
                                 1 + static_cast<int64_t>(random.below(20)),
                                 random.below(2) == 0,
                                 1 + static_cast<int64_t>(random.below(120)),
                                 true,
                                 nullptr};
    const GuardedBuffer buffer(arguments);
    run_kernel(arguments, ThreadOrder::ascending);
    CHECK(buffer.guards_hold());
    const BlockMaskArrays arrays(arguments);
    for (const BlockLists& lists : {arrays.rows, arrays.columns}) {
      for (int64_t line = 0; line < lists.num_lines; ++line) {
        CHECK(lists.num_blocks[line] >= 0 && lists.full_num_blocks[line] >= 0);
        CHECK(lists.num_blocks[line] + lists.full_num_blocks[line] <= lists.capacity);
        for (int32_t i = 0; i < lists.num_blocks[line]; ++i) {
          const int32_t block = lists.indices[line * lists.capacity + i];
          CHECK(block >= 0 && block < lists.capacity);
        }
      }
    }
    for (int64_t query = 0; query < num_tokens; ++query) {
      CHECK(arrays.key_begin[query] >= 0 && arrays.key_begin[query] <= query);
    }
  }
}

void division_is_exact_at_every_boundary() {
  constexpr int64_t largest = (int64_t{1} << 31) - 1;
  for (const int64_t size : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{7}, int64_t{127},
                             int64_t{128}, int64_t{46341}, (int64_t{1} << 30) + 1, largest}) {
    const dsm::BlockDivider divider(size);
    dsm::RandomStream random(static_cast<uint64_t>(size));
    for (int i = 0; i < 20'000; ++i) {
      const int64_t blocks =
          static_cast<int64_t>(random.below(static_cast<uint64_t>(largest / size) + 1));
      for (const int64_t token : {blocks * size - 1, blocks * size, blocks * size + 1, largest}) {
        if (token < 0 || token > largest) continue;
        CHECK(divider.block_of(token) == token / size);
        CHECK(divider.blocks_to_hold(token) == token / size + (token % size != 0));
      }
    }
  }
}

}  // namespace

int main() {
  kernel_and_cpu_loop_equal_the_dense_mask();
  kernel_stays_inside_whatever_cu_seqlens_holds();
  division_is_exact_at_every_boundary();
}
