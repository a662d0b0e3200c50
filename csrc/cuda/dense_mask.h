#pragma once

#include <cuda_runtime_api.h>

#include "core/dense_mask.h"

namespace dsm::cuda {

/// Queues on `stream` what dsm::dense_mask does on the CPU; all addresses are on the device. The
/// entries are not checked, which would need a synchronisation, but none within [0, num_tokens]
/// leads outside the mask.
template <class Element>
cudaError_t dense_mask(const DenseMaskArguments& arguments, MaskBits<Element> bits,
                       cudaStream_t stream);

}  // namespace dsm::cuda
