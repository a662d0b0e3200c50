// document_losses[d] = sum of token_losses[t] * loss_weights[t] over the positions of document d
// whose weight is above 0, document_counts[d] = their number; slice_losses[s] and slice_counts[s]
// = the sums of both over the documents that name slice s.
//
// The tokens are read once: a block takes a document, its threads are the lanes of the sum, which
// are folded in shared memory. A second launch does the same with a slice and its documents. 8
// bytes are read a token, a warp's 128 in a row: memory bandwidth is the bound where documents are
// many, and at 4,096 tokens the two launches. The order of additions is the CPU's, so are the bits.

#include "cuda/launch.h"
#include "cuda/segment_loss.h"

namespace dsm::cuda {
namespace {

/// The sum of the block's lanes; only thread 0 has it.
__device__ LossSum fold_lanes(LossSum lane) {
  __shared__ LossSum partials[threads_per_block];
  const int thread_idx = static_cast<int>(threadIdx.x);
  partials[thread_idx] = lane;
  for (int stride = threads_per_block / 2; stride > 0; stride /= 2) {
    __syncthreads();
    fold(partials, stride, thread_idx);
  }
  return partials[thread_idx];
}

__global__ void __launch_bounds__(threads_per_block)
    document_loss_kernel(const __grid_constant__ SegmentLossArguments arguments) {
  const int64_t document = blockIdx.x;
  const LossSum sum = fold_lanes(document_lane(arguments, document, static_cast<int>(threadIdx.x)));
  if (threadIdx.x != 0) return;
  arguments.document_losses[document] = sum.loss;
  arguments.document_counts[document] = sum.count;
}

__global__ void __launch_bounds__(threads_per_block)
    slice_loss_kernel(const __grid_constant__ SegmentLossArguments arguments) {
  const int64_t slice = blockIdx.x;
  const LossSum sum = fold_lanes(slice_lane(arguments, slice, static_cast<int>(threadIdx.x)));
  if (threadIdx.x != 0) return;
  arguments.slice_losses[slice] = sum.loss;
  arguments.slice_counts[slice] = sum.count;
}

}  // namespace

cudaError_t segment_loss(const SegmentLossArguments& arguments, cudaStream_t stream) {
  if (!is_pack(arguments.num_documents + 1, arguments.num_tokens) ||
      arguments.num_documents >= size_limit || arguments.num_columns < 0 ||
      arguments.num_slices < 0 || arguments.num_slices >= size_limit) {
    return cudaErrorInvalidValue;
  }
  document_loss_kernel<<<static_cast<unsigned>(arguments.num_documents), threads_per_block, 0,
                         stream>>>(arguments);
  if (arguments.num_slices == 0) return cudaGetLastError();
  slice_loss_kernel<<<static_cast<unsigned>(arguments.num_slices), threads_per_block, 0, stream>>>(
      arguments);
  return cudaGetLastError();
}

}  // namespace dsm::cuda
