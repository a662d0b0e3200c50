// dsm_engine._cuda: launchers of the CUDA operators. Addresses and the stream come in as integers,
// so that no torch is linked. The CUDA runtime is linked in and wants a driver of its own major
// version or above, whatever the installed torch wants; runtime_status says whether it has one.
// A launch that fails raises RuntimeError.

#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>

#include "bindings/operator_arguments.h"
#include "cuda/block_mask.h"
#include "cuda/context_parallel.h"
#include "cuda/dense_mask.h"
#include "cuda/packed_metadata.h"
#include "cuda/segment_loss.h"

namespace py = pybind11;

namespace {

using dsm::bindings::at;

void check(cudaError_t status, const char* op) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(op) + ": CUDA error " + std::to_string(status) + ": " +
                           cudaGetErrorString(status));
}

std::string version_name(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

std::string described(cudaError_t status) {
  cudaGetLastError();  // or the next launch would report it
  return "CUDA error " + std::to_string(status) + ": " + cudaGetErrorString(status);
}

/// Why no kernel of this module runs on the device, nothing where they do.
std::optional<std::string> runtime_status(int device_index) {
  int runtime = 0;
  int driver = 0;
  cudaError_t status = cudaRuntimeGetVersion(&runtime);
  if (status == cudaSuccess) status = cudaDriverGetVersion(&driver);
  if (status != cudaSuccess) return described(status);
  if (driver == 0) return "there is no NVIDIA driver";
  // Within a major version a newer runtime runs on an older driver; what it refuses, it says below.
  if (driver / 1000 < runtime / 1000) {
    return "they were built with CUDA " + version_name(runtime) + ", the driver is of CUDA " +
           version_name(driver) + ": install a newer driver, or build with an older nvcc";
  }
  int previous = 0;
  status = cudaGetDevice(&previous);
  if (status == cudaSuccess) status = cudaSetDevice(device_index);
  if (status != cudaSuccess) return described(status);
  status = dsm::cuda::find_packed_metadata_kernel();
  std::optional<std::string> reason;
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction) {
    cudaGetLastError();
    reason = "they were built without code for this device: CMAKE_CUDA_ARCHITECTURES names more";
  } else if (status != cudaSuccess) {
    reason = described(status);
  }
  cudaSetDevice(previous);
  return reason;
}

void packed_metadata(uintptr_t cu_seqlens, int64_t num_entries, int64_t num_tokens,
                     uintptr_t tokens, uintptr_t supervised, uintptr_t position_ids,
                     uintptr_t document_ids, uintptr_t segment_ends, uintptr_t labels,
                     uintptr_t loss_weights, uintptr_t max_seqlen, uintptr_t stream) {
  const auto arguments = dsm::bindings::packed_metadata_arguments(
      cu_seqlens, num_entries, num_tokens, tokens, supervised, position_ids, document_ids,
      segment_ends, labels, loss_weights, max_seqlen);
  check(dsm::cuda::packed_metadata(arguments, at<CUstream_st>(stream)), "packed_metadata");
}

void dense_mask(uintptr_t cu_seqlens, int64_t num_entries, int64_t num_tokens, int64_t row_length,
                bool banded, bool causal, int64_t window, int element_bytes, uintptr_t mask,
                uintptr_t stream) {
  const auto arguments = dsm::bindings::dense_mask_arguments(
      cu_seqlens, num_entries, num_tokens, row_length, banded, causal, window, mask);
  check(dsm::bindings::with_mask_bits(element_bytes,
                                      [&](auto bits) {
                                        return dsm::cuda::dense_mask(arguments, bits,
                                                                     at<CUstream_st>(stream));
                                      }),
        "dense_mask");
}

void segment_loss(uintptr_t token_losses, uintptr_t loss_weights, int64_t num_tokens,
                  uintptr_t cu_seqlens, int64_t num_documents, uintptr_t slice_ids,
                  int64_t num_columns, int64_t num_slices, uintptr_t document_losses,
                  uintptr_t document_counts, uintptr_t slice_losses, uintptr_t slice_counts,
                  uintptr_t stream) {
  const auto arguments = dsm::bindings::segment_loss_arguments(
      token_losses, loss_weights, num_tokens, cu_seqlens, num_documents, slice_ids, num_columns,
      num_slices, document_losses, document_counts, slice_losses, slice_counts);
  check(dsm::cuda::segment_loss(arguments, at<CUstream_st>(stream)), "segment_loss");
}

void block_mask(uintptr_t cu_seqlens, int64_t num_entries, int64_t num_tokens,
                int64_t query_block_size, int64_t key_block_size, bool causal, int64_t window,
                bool with_key_bounds, uintptr_t buffer, uintptr_t stream) {
  check(dsm::cuda::block_mask(
            {at<const int32_t>(cu_seqlens), num_entries, num_tokens, query_block_size,
             key_block_size, causal, window, with_key_bounds, at<int32_t>(buffer)},
            at<CUstream_st>(stream)),
        "block_mask");
}

void context_parallel_split(uintptr_t cu_seqlens, int64_t num_entries, int64_t num_tokens,
                            int64_t cp_size, int64_t num_slots, uintptr_t cu_seqlens_padded,
                            uintptr_t token_idx, uintptr_t position_ids, uintptr_t inverse,
                            uintptr_t stream) {
  check(dsm::cuda::context_parallel_split(
            {at<const int32_t>(cu_seqlens), num_entries, num_tokens, cp_size, num_slots,
             at<int32_t>(cu_seqlens_padded), at<int64_t>(token_idx), at<int64_t>(position_ids),
             at<int64_t>(inverse)},
            at<CUstream_st>(stream)),
        "context_parallel_split");
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "CUDA launchers of dsm_engine; use them through dsm_engine.ops.";
  module.def("runtime_status", &runtime_status, py::call_guard<py::gil_scoped_release>());
  module.def("packed_metadata", &packed_metadata);
  module.def("dense_mask", &dense_mask);
  module.def("segment_loss", &segment_loss);
  module.def("block_mask", &block_mask);
  module.def("context_parallel_split", &context_parallel_split);
}
