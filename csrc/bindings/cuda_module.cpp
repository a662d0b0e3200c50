// dsm_engine._cuda: launchers of the CUDA operators. Addresses and the stream come in as integers,
// so that one binary serves every torch. A launch that fails raises RuntimeError.

#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/block_mask.h"
#include "cuda/context_parallel.h"
#include "cuda/dense_mask.h"
#include "cuda/packed_metadata.h"

namespace py = pybind11;

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void check(cudaError_t status, const char* op) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(op) + ": CUDA error " + std::to_string(status) + ": " +
                           cudaGetErrorString(status));
}

void packed_metadata(uintptr_t cu_seqlens, int64_t num_entries, int64_t num_tokens,
                     uintptr_t position_ids, uintptr_t document_ids, uintptr_t stream) {
  check(dsm::cuda::packed_metadata(at<const int32_t>(cu_seqlens), num_entries, num_tokens,
                                   at<int64_t>(position_ids), at<int32_t>(document_ids),
                                   at<CUstream_st>(stream)),
        "packed_metadata");
}

void dense_mask(uintptr_t cu_seqlens, int64_t num_entries, int64_t num_tokens, uintptr_t mask,
                uintptr_t stream) {
  check(dsm::cuda::dense_mask(at<const int32_t>(cu_seqlens), num_entries, num_tokens,
                              at<uint8_t>(mask), at<CUstream_st>(stream)),
        "dense_mask");
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
  module.def("packed_metadata", &packed_metadata, py::arg("cu_seqlens"), py::arg("num_entries"),
             py::arg("num_tokens"), py::arg("position_ids"), py::arg("document_ids"),
             py::arg("stream"));
  module.def("dense_mask", &dense_mask, py::arg("cu_seqlens"), py::arg("num_entries"),
             py::arg("num_tokens"), py::arg("mask"), py::arg("stream"));
  module.def("block_mask", &block_mask, py::arg("cu_seqlens"), py::arg("num_entries"),
             py::arg("num_tokens"), py::arg("query_block_size"), py::arg("key_block_size"),
             py::arg("causal"), py::arg("window"), py::arg("with_key_bounds"), py::arg("buffer"),
             py::arg("stream"));
  module.def("context_parallel_split", &context_parallel_split, py::arg("cu_seqlens"),
             py::arg("num_entries"), py::arg("num_tokens"), py::arg("cp_size"),
             py::arg("num_slots"), py::arg("cu_seqlens_padded"), py::arg("token_idx"),
             py::arg("position_ids"), py::arg("inverse"), py::arg("stream"));
}
