// mask[q, k] = begin(document of q) <= k <= q, one byte each.
//
// A thread writes 16 consecutive keys of one query: one binary search in cu_seqlens, then a 16-byte
// store (bytes where the row length is no multiple of 16). num_tokens^2 bytes are written and next
// to none read: the bound is store bandwidth, 16.8 MB at 4,096 tokens. A reference for tests and
// small models; attention kernels take cu_seqlens.

#include "core/dense_mask.h"
#include "core/packed_metadata.h"
#include "cuda/dense_mask.h"
#include "cuda/launch.h"

namespace dsm::cuda {
namespace {

constexpr int keys_per_thread = 16;

__global__ void dense_mask_kernel(const int32_t* __restrict__ cu_seqlens, int64_t num_entries,
                                  int64_t num_tokens, int64_t threads_per_query,
                                  uint8_t* __restrict__ mask) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t query = thread / threads_per_query;
  if (query >= num_tokens) return;
  const int64_t first_key = thread % threads_per_query * keys_per_thread;
  const int64_t document_begin = cu_seqlens[find_document(cu_seqlens, num_entries, query)];
  uint8_t* out = mask + query * num_tokens + first_key;
  if (num_tokens % keys_per_thread == 0) {
    alignas(16) uint8_t keys[keys_per_thread];
    fill_mask_segment(document_begin, query, first_key, keys_per_thread, keys);
    *reinterpret_cast<int4*>(out) = *reinterpret_cast<const int4*>(keys);
  } else {
    const int64_t rest = num_tokens - first_key;
    const int64_t count = rest < keys_per_thread ? rest : keys_per_thread;
    fill_mask_segment(document_begin, query, first_key, count, out);
  }
}

}  // namespace

cudaError_t dense_mask(const int32_t* cu_seqlens, int64_t num_entries, int64_t num_tokens,
                       uint8_t* mask, cudaStream_t stream) {
  constexpr int64_t max_tokens = int64_t{1} << 17;  // keeps the grid below 2^31 blocks
  if (num_entries < 2 || num_tokens < 0 || num_tokens > max_tokens) return cudaErrorInvalidValue;
  if (!is_aligned(mask)) return cudaErrorMisalignedAddress;
  if (num_tokens == 0) return cudaSuccess;
  const int64_t threads_per_query = ceil_div(num_tokens, keys_per_thread);
  dense_mask_kernel<<<num_blocks(num_tokens * threads_per_query), threads_per_block, 0, stream>>>(
      cu_seqlens, num_entries, num_tokens, threads_per_query, mask);
  return cudaGetLastError();
}

}  // namespace dsm::cuda
