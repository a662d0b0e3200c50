// For token t of document d = [begin, end): position_ids[t] = t - begin, document_ids[t] = d,
// segment_ends[t] = end, labels[t] = tokens[t + 1] where t + 1 < end and that token is supervised,
// else -100, loss_weights[t] = 1 where there is a label, else 0. max_seqlen = the largest
// end - begin.
//
// Block 0 takes the maximum over cu_seqlens in a tree; every other one fills 1,024 tokens, 4 a
// thread: one binary search in cu_seqlens (a few dozen entries, in L1 after the first), then seven
// 16-byte stores. 9 bytes are read and 28 written a token, so the bound is memory bandwidth; at
// 4,096 tokens (148 KiB) the launch itself is the cost.

#include "cuda/launch.h"
#include "cuda/packed_metadata.h"

namespace dsm::cuda {
namespace {

__global__ void __launch_bounds__(threads_per_block)
    packed_metadata_kernel(const __grid_constant__ PackedMetadataArguments arguments) {
  const int thread_idx = static_cast<int>(threadIdx.x);
  if (blockIdx.x > 0) {
    packed_metadata_body(arguments, int64_t{blockIdx.x} - 1, thread_idx);
    return;
  }
  __shared__ LongestDocument partials[threads_per_block];
  partials[thread_idx] = longest_document(arguments, thread_idx);
  for (int stride = threads_per_block / 2; stride > 0; stride /= 2) {
    __syncthreads();
    fold(partials, stride, thread_idx);
  }
  if (thread_idx == 0) *arguments.max_seqlen = partials[0].length;
}

}  // namespace

cudaError_t packed_metadata(const PackedMetadataArguments& arguments, cudaStream_t stream) {
  if (!is_pack(arguments.num_entries, arguments.num_tokens)) return cudaErrorInvalidValue;
  if (!is_aligned(arguments.position_ids) || !is_aligned(arguments.document_ids) ||
      !is_aligned(arguments.segment_ends) || !is_aligned(arguments.labels) ||
      !is_aligned(arguments.loss_weights)) {
    return cudaErrorMisalignedAddress;
  }
  const int64_t blocks = 1 + packed_metadata_blocks(arguments.num_tokens);
  packed_metadata_kernel<<<static_cast<unsigned>(blocks), threads_per_block, 0, stream>>>(
      arguments);
  return cudaGetLastError();
}

cudaError_t find_packed_metadata_kernel() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, packed_metadata_kernel);
}

}  // namespace dsm::cuda
