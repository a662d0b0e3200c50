// The block lists of a block-diagonal mask in closed form (core/block_mask.h has the maths), and of
// each query the keys it attends to, for the mask function.
//
// A warp writes a line, a row of blocks or a column: each thread searches cu_seqlens (a few dozen
// entries, in L1 after the first) for the line's first and last token, has the line's four numbers,
// and the warp stores the ascending indices 512 bytes at a time. The blocks behind those of the
// lines write the bounds of 4 queries a thread. Next to nothing is read; written are 4 bytes for
// each block in the lists and 4 a token (8 unless causal): 0.2 MB at 32,768 tokens of documents of
// a few hundred, where the launch itself is the cost. Beyond, the bound is store bandwidth.

#include "cuda/block_mask.h"
#include "cuda/launch.h"

namespace dsm::cuda {
namespace {

__global__ void __launch_bounds__(threads_per_block)
    block_mask_kernel(const __grid_constant__ BlockMaskArguments arguments) {
  block_mask_body(arguments, int64_t{blockIdx.x}, static_cast<int>(threadIdx.x));
}

}  // namespace

cudaError_t block_mask(const BlockMaskArguments& arguments, cudaStream_t stream) {
  if (!is_pack(arguments.num_entries, arguments.num_tokens) || arguments.query_block_size < 1 ||
      arguments.query_block_size >= size_limit || arguments.key_block_size < 1 ||
      arguments.key_block_size >= size_limit || arguments.window < 1) {
    return cudaErrorInvalidValue;
  }
  if (!is_aligned(arguments.buffer)) return cudaErrorMisalignedAddress;
  if (arguments.num_tokens == 0) return cudaSuccess;
  const int64_t blocks = block_mask_blocks(arguments);
  block_mask_kernel<<<static_cast<unsigned>(blocks), threads_per_block, 0, stream>>>(arguments);
  return cudaGetLastError();
}

}  // namespace dsm::cuda
