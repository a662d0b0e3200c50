#pragma once

#include <cuda_runtime_api.h>

#include "core/context_parallel.h"

namespace dsm::cuda {

/// Queues on `stream` what dsm::context_parallel_split does on the CPU; all addresses are on the
/// device, token_idx, position_ids and inverse on 16 bytes. Neither the entries nor whether the
/// slots suffice is checked, which would need a synchronisation, but nothing leads outside the
/// arrays; a token without a slot gets num_slots.
cudaError_t context_parallel_split(const ContextParallelArguments& arguments, cudaStream_t stream);

}  // namespace dsm::cuda
