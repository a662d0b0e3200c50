#pragma once

#include <cuda_runtime_api.h>

#include "core/block_mask.h"

namespace dsm::cuda {

/// Queues on `stream` what dsm::block_mask does on the CPU; all addresses are on the device. The
/// entries are not checked, which would need a synchronisation, but none leads outside the arrays.
cudaError_t block_mask(const BlockMaskArguments& arguments, cudaStream_t stream);

}  // namespace dsm::cuda
