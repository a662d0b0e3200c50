// Slot j of rank r belongs to the document d whose padded tokens [P_d, P_d+1) hold j * cp_size.
// With c = (P_d+1 - P_d) / (2 cp_size) and i = j - P_d / cp_size, it holds position r * c + i where
// i < c, else (2 cp_size - 1 - r) * c + i - c. inverse is the same the other way round.
//
// Every block makes the padded offsets P for itself: 256 sums of padded lengths, scanned in shared
// memory, and a walk from the nearest sum (core/context_parallel.h). A thread then writes two slots
// or two tokens with 16-byte stores. 16 bytes are written a slot and 8 a token, and next to none
// read: 0.2 MB at 8,192 tokens, where the launch and the scan's barriers are the cost; beyond, the
// bound is store bandwidth.

#include "cuda/context_parallel.h"
#include "cuda/launch.h"

namespace dsm::cuda {
namespace {

__global__ void __launch_bounds__(threads_per_block)
    context_parallel_kernel(const __grid_constant__ ContextParallelArguments arguments) {
  __shared__ int64_t sums[2][threads_per_block];
  const int thread_idx = static_cast<int>(threadIdx.x);
  sum_padded_lengths(arguments, sums[0], thread_idx);
  int current = 0;
  for (int stride = 1; stride < threads_per_block; stride *= 2) {
    __syncthreads();
    scan_step(sums[current], sums[1 - current], stride, thread_idx);
    current = 1 - current;
  }
  __syncthreads();
  context_parallel_body(arguments, sums[current], int64_t{blockIdx.x}, thread_idx);
}

}  // namespace

cudaError_t context_parallel_split(const ContextParallelArguments& arguments, cudaStream_t stream) {
  constexpr int64_t limit = int64_t{1} << 31;  // of what int32 holds, and of blocks of a grid
  if (arguments.num_entries < 2 || arguments.num_tokens < 0 || arguments.num_tokens >= limit ||
      arguments.cp_size < 1 || arguments.cp_size > 1 << 16 || arguments.num_slots < 0 ||
      arguments.num_slots >= limit || arguments.num_slots % (2 * arguments.cp_size) != 0) {
    return cudaErrorInvalidValue;
  }
  if (!is_aligned(arguments.token_idx) || !is_aligned(arguments.position_ids) ||
      !is_aligned(arguments.inverse)) {
    return cudaErrorMisalignedAddress;
  }
  const int64_t blocks = context_parallel_blocks(arguments);
  context_parallel_kernel<<<static_cast<unsigned>(blocks), threads_per_block, 0, stream>>>(
      arguments);
  return cudaGetLastError();
}

}  // namespace dsm::cuda
