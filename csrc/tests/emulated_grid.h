#pragma once

#include <cstdint>
#include <vector>

#include "core/dense_mask.h"
#include "core/packed_metadata.h"
#include "core/segment_loss.h"

// The kernels of csrc/cuda as the CPU runs them: block by block, within a phase thread by thread,
// the same bodies on the same indices. A barrier ends a phase.

namespace dsm::test {

/// In which order the threads of a phase run: where a barrier is missing the two differ.
enum class ThreadOrder { ascending, descending };

inline constexpr ThreadOrder thread_orders[] = {ThreadOrder::ascending, ThreadOrder::descending};

/// Calls body(thread_idx) for the threads of a block.
template <class Body>
void run_phase(ThreadOrder order, const Body& body) {
  for (int i = 0; i < threads_per_block; ++i) {
    body(order == ThreadOrder::ascending ? i : threads_per_block - 1 - i);
  }
}

/// Calls body(block_idx, thread_idx) for all.
template <class Body>
void run_grid(int64_t num_blocks, ThreadOrder order, const Body& body) {
  for (int64_t block_idx = 0; block_idx < num_blocks; ++block_idx) {
    run_phase(order, [&](int thread_idx) { body(block_idx, thread_idx); });
  }
}

/// What a block folds of partial(thread_idx).
template <class MakePartial>
auto fold_block(ThreadOrder order, const MakePartial& partial) {
  std::vector<decltype(partial(0))> partials(threads_per_block);
  run_phase(order, [&](int i) { partials[static_cast<size_t>(i)] = partial(i); });
  for (int stride = threads_per_block / 2; stride > 0; stride /= 2) {
    run_phase(order, [&](int i) { fold(partials.data(), stride, i); });
  }
  return partials[0];
}

inline void run_packed_metadata(const PackedMetadataArguments& arguments,
                                ThreadOrder order = ThreadOrder::ascending) {
  *arguments.max_seqlen = fold_block(order, [&](int thread_idx) {
                            return longest_document(arguments, thread_idx);
                          }).length;
  run_grid(packed_metadata_blocks(arguments.num_tokens), order,
           [&](int64_t block_idx, int thread_idx) {
             packed_metadata_body(arguments, block_idx, thread_idx);
           });
}

template <class Element>
void run_dense_mask(const DenseMaskArguments& arguments, MaskBits<Element> bits,
                    ThreadOrder order = ThreadOrder::ascending) {
  const DenseMaskGrid grid = dense_mask_grid(arguments, sizeof(Element));
  run_grid(grid.num_blocks, order, [&](int64_t block_idx, int thread_idx) {
    dense_mask_body(arguments, grid, bits, block_idx, thread_idx);
  });
}

inline void run_segment_loss(const SegmentLossArguments& arguments,
                             ThreadOrder order = ThreadOrder::ascending) {
  for (int64_t document = 0; document < arguments.num_documents; ++document) {
    const LossSum sum =
        fold_block(order, [&](int lane) { return document_lane(arguments, document, lane); });
    arguments.document_losses[document] = sum.loss;
    arguments.document_counts[document] = sum.count;
  }
  for (int64_t slice = 0; slice < arguments.num_slices; ++slice) {
    const LossSum sum =
        fold_block(order, [&](int lane) { return slice_lane(arguments, slice, lane); });
    arguments.slice_losses[slice] = sum.loss;
    arguments.slice_counts[slice] = sum.count;
  }
}

}  // namespace dsm::test
