#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace dsm::cuda {

/// Queues on `stream` what dsm::packed_metadata does on the CPU; all addresses are on the device.
/// cu_seqlens [num_entries], position_ids and document_ids [num_tokens], both on 16 bytes. The
/// entries are not checked: that would need a synchronisation.
cudaError_t packed_metadata(const int32_t* cu_seqlens, int64_t num_entries, int64_t num_tokens,
                            int64_t* position_ids, int32_t* document_ids, cudaStream_t stream);

}  // namespace dsm::cuda
