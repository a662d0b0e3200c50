#pragma once

#include <cuda_runtime_api.h>

#include "core/packed_metadata.h"

namespace dsm::cuda {

/// Queues on `stream` what dsm::packed_metadata does on the CPU; all addresses are on the device,
/// the outputs' on 16 bytes. The entries are not checked, which would need a synchronisation, but
/// none within [0, num_tokens] leads outside the arrays.
cudaError_t packed_metadata(const PackedMetadataArguments& arguments, cudaStream_t stream);

/// Whether the current device has code of the kernel: the error of asking for its attributes.
cudaError_t find_packed_metadata_kernel();

}  // namespace dsm::cuda
