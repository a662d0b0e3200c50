// Grids of the largest pack there can be: what a launcher casts to 32 bits fits them.

#include <cstdint>

#include "core/block_mask.h"
#include "core/context_parallel.h"
#include "core/dense_mask.h"
#include "core/packed_metadata.h"
#include "tests/check.h"

namespace {

constexpr int64_t most_tokens = (int64_t{1} << 31) - 1;  // size_limit of cuda/launch.h, less one
constexpr int64_t most_blocks = (int64_t{1} << 31) - 1;  // of a grid's first dimension

void metadata_fits() {
  CHECK(dsm::packed_metadata_blocks(0) == 0);
  CHECK(dsm::packed_metadata_blocks(1) == 1);
  const int64_t blocks = dsm::packed_metadata_blocks(most_tokens);
  CHECK(blocks == int64_t{1} << 21);
  CHECK(blocks + 1 <= most_blocks);  // and one for the longest document
}

void dense_masks_fit() {
  for (const int64_t row_length : {int64_t{0}, int64_t{1}, int64_t{17}, most_tokens}) {
    for (const int64_t element_bytes : {1, 2, 4}) {
      const dsm::DenseMaskArguments arguments{nullptr, 2,    most_tokens, row_length,
                                              true,    true, most_tokens, nullptr};
      const dsm::DenseMaskGrid grid = dsm::dense_mask_grid(arguments, element_bytes);
      CHECK(grid.num_blocks <= most_blocks);
      CHECK(grid.num_blocks * grid.rows_per_block >= most_tokens);
      CHECK((grid.num_blocks - 1) * grid.rows_per_block < most_tokens);
    }
  }
}

void block_masks_fit() {
  // A list of more than 2^31 - 1 entries is refused before: 2^15 blocks square are below that.
  for (const int64_t block_size : {int64_t{1} << 16, most_tokens}) {
    const dsm::BlockMaskArguments arguments{
        nullptr, 2, most_tokens, block_size, block_size, true, most_tokens, true, nullptr};
    const int64_t lines = 2 * dsm::ceil_div(most_tokens, block_size);
    const int64_t blocks = dsm::block_mask_blocks(arguments);
    CHECK(blocks <= most_blocks);
    CHECK(blocks >= lines / dsm::lines_per_block + (int64_t{1} << 21));
  }
}

void context_parallel_splits_fit() {
  const dsm::ContextParallelArguments arguments{nullptr, 2,       most_tokens, 1,      most_tokens,
                                                nullptr, nullptr, nullptr,     nullptr};
  const int64_t blocks = dsm::context_parallel_blocks(arguments);
  CHECK(blocks <= most_blocks);
  CHECK(blocks == int64_t{1} << 23);  // 2^22 of the slots and as many of the tokens
}

}  // namespace

int main() {
  metadata_fits();
  dense_masks_fit();
  block_masks_fit();
  context_parallel_splits_fit();
  return 0;
}
