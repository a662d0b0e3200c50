#pragma once

#include <cuda_runtime_api.h>

#include "core/segment_loss.h"

namespace dsm::cuda {

/// Queues on `stream` what dsm::segment_loss does on the CPU; all addresses are on the device. The
/// entries are not checked, which would need a synchronisation, but none within [0, num_tokens]
/// leads outside the arrays, and slice ids out of range are ignored.
cudaError_t segment_loss(const SegmentLossArguments& arguments, cudaStream_t stream);

}  // namespace dsm::cuda
