// mask[q, k] = k is a key of the document of q, not after q where causal, and less than the window
// from it: for every q one range of consecutive columns, also in the banded form.
//
// A block writes 32 KiB of consecutive rows, or one longer row. A thread searches its first row's
// document once, walks on from row to row, and writes every so many of the row's 16-byte chunks:
// constants, but for the two that hold an end of the range, which are constants shifted by it. Some
// 30 instructions a chunk, where an SM of an H200 issues a hundred in the time its share of the
// memory takes a warp's 512 bytes. Chunks stand where 16 divides the address, whatever the row's
// length; what is before and after them is written by elements. num_tokens * row_length elements
// are written and next to none read: the bound is store bandwidth.

#include "cuda/dense_mask.h"
#include "cuda/launch.h"

namespace dsm::cuda {
namespace {

template <class Element>
__global__ void __launch_bounds__(threads_per_block)
    dense_mask_kernel(const __grid_constant__ DenseMaskArguments arguments,
                      const __grid_constant__ DenseMaskGrid grid, MaskBits<Element> bits) {
  dense_mask_body(arguments, grid, bits, blockIdx.x, static_cast<int>(threadIdx.x));
}

}  // namespace

template <class Element>
cudaError_t dense_mask(const DenseMaskArguments& arguments, MaskBits<Element> bits,
                       cudaStream_t stream) {
  if (!is_pack(arguments.num_entries, arguments.num_tokens) || arguments.row_length < 0) {
    return cudaErrorInvalidValue;
  }
  if (arguments.num_tokens == 0) return cudaSuccess;
  const DenseMaskGrid grid = dense_mask_grid(arguments, sizeof(Element));
  dense_mask_kernel<<<static_cast<unsigned>(grid.num_blocks), threads_per_block, 0, stream>>>(
      arguments, grid, bits);
  return cudaGetLastError();
}

template cudaError_t dense_mask(const DenseMaskArguments&, MaskBits<uint8_t>, cudaStream_t);
template cudaError_t dense_mask(const DenseMaskArguments&, MaskBits<uint16_t>, cudaStream_t);
template cudaError_t dense_mask(const DenseMaskArguments&, MaskBits<uint32_t>, cudaStream_t);

}  // namespace dsm::cuda
