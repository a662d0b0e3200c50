#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace dsm::cuda {

/// Queues on `stream` what dsm::dense_mask does on the CPU; all addresses are on the device.
/// cu_seqlens [num_entries], mask [num_tokens, num_tokens] on 16 bytes. The entries are not
/// checked: that would need a synchronisation.
cudaError_t dense_mask(const int32_t* cu_seqlens, int64_t num_entries, int64_t num_tokens,
                       uint8_t* mask, cudaStream_t stream);

}  // namespace dsm::cuda
