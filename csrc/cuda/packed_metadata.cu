// position_ids[t] = t - cu_seqlens[d] and document_ids[t] = d, d being the document of token t.
//
// A thread fills 4 consecutive tokens: one binary search in cu_seqlens (a few dozen entries, in L1
// after the first), then 16-byte stores. 12 bytes are written a token and next to none read, so
// the bound is store bandwidth; at 4,096 tokens (48 KiB) the launch itself is the cost.

#include "core/packed_metadata.h"
#include "cuda/launch.h"
#include "cuda/packed_metadata.h"

namespace dsm::cuda {
namespace {

constexpr int tokens_per_thread = 4;

__global__ void packed_metadata_kernel(const int32_t* __restrict__ cu_seqlens, int64_t num_entries,
                                       int64_t num_tokens, int64_t* __restrict__ position_ids,
                                       int32_t* __restrict__ document_ids) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t first = thread * tokens_per_thread;
  if (first >= num_tokens) return;
  alignas(16) int64_t positions[tokens_per_thread];
  alignas(16) int32_t documents[tokens_per_thread];
  if (num_tokens - first >= tokens_per_thread) {
    fill_packed_metadata(cu_seqlens, num_entries, first, tokens_per_thread, positions, documents);
    int4* position_out = reinterpret_cast<int4*>(position_ids + first);
    position_out[0] = reinterpret_cast<const int4*>(positions)[0];
    position_out[1] = reinterpret_cast<const int4*>(positions)[1];
    *reinterpret_cast<int4*>(document_ids + first) = *reinterpret_cast<const int4*>(documents);
  } else {
    fill_packed_metadata(cu_seqlens, num_entries, first, num_tokens - first, position_ids + first,
                         document_ids + first);
  }
}

}  // namespace

cudaError_t packed_metadata(const int32_t* cu_seqlens, int64_t num_entries, int64_t num_tokens,
                            int64_t* position_ids, int32_t* document_ids, cudaStream_t stream) {
  if (num_entries < 2 || num_tokens < 0) return cudaErrorInvalidValue;
  if (!is_aligned(position_ids) || !is_aligned(document_ids)) return cudaErrorMisalignedAddress;
  if (num_tokens == 0) return cudaSuccess;
  const int64_t threads = ceil_div(num_tokens, tokens_per_thread);
  packed_metadata_kernel<<<num_blocks(threads), threads_per_block, 0, stream>>>(
      cu_seqlens, num_entries, num_tokens, position_ids, document_ids);
  return cudaGetLastError();
}

}  // namespace dsm::cuda
