#include "bindings/core_bindings.h"
#include "bindings/numpy_arrays.h"
#include "core/block_mask.h"
#include "core/context_parallel.h"
#include "core/dense_mask.h"
#include "core/packed_metadata.h"

namespace dsm::bindings {
namespace {

// The operators take addresses as integers: reading a tensor's costs far less than wrapping it.
template <class T>
std::span<T> span_at(uintptr_t address, int64_t size) {
  return {reinterpret_cast<T*>(address), static_cast<size_t>(size)};
}

void packed_metadata(uintptr_t cu_seqlens, int64_t num_entries, int64_t num_tokens,
                     uintptr_t position_ids, uintptr_t document_ids) {
  py::gil_scoped_release release;
  dsm::packed_metadata(span_at<const int32_t>(cu_seqlens, num_entries),
                       span_at<int64_t>(position_ids, num_tokens),
                       span_at<int32_t>(document_ids, num_tokens));
}

void dense_mask(uintptr_t cu_seqlens, int64_t num_entries, int64_t num_tokens, uintptr_t mask) {
  py::gil_scoped_release release;
  dsm::dense_mask(span_at<const int32_t>(cu_seqlens, num_entries), num_tokens,
                  span_at<uint8_t>(mask, num_tokens * num_tokens));
}

void block_mask(uintptr_t cu_seqlens, int64_t num_entries, int64_t num_tokens,
                int64_t query_block_size, int64_t key_block_size, bool causal, int64_t window,
                bool with_key_bounds, uintptr_t buffer) {
  py::gil_scoped_release release;
  dsm::block_mask({reinterpret_cast<const int32_t*>(cu_seqlens), num_entries, num_tokens,
                   query_block_size, key_block_size, causal, window, with_key_bounds,
                   reinterpret_cast<int32_t*>(buffer)});
}

void context_parallel_split(uintptr_t cu_seqlens, int64_t num_entries, int64_t num_tokens,
                            int64_t cp_size, int64_t num_slots, uintptr_t cu_seqlens_padded,
                            uintptr_t token_idx, uintptr_t position_ids, uintptr_t inverse) {
  py::gil_scoped_release release;
  dsm::context_parallel_split(
      {reinterpret_cast<const int32_t*>(cu_seqlens), num_entries, num_tokens, cp_size, num_slots,
       reinterpret_cast<int32_t*>(cu_seqlens_padded), reinterpret_cast<int64_t*>(token_idx),
       reinterpret_cast<int64_t*>(position_ids), reinterpret_cast<int64_t*>(inverse)});
}

}  // namespace

void bind_operators(py::module_& module) {
  module.def("packed_metadata", &packed_metadata, py::arg("cu_seqlens"), py::arg("num_entries"),
             py::arg("num_tokens"), py::arg("position_ids"), py::arg("document_ids"));
  module.def("dense_mask", &dense_mask, py::arg("cu_seqlens"), py::arg("num_entries"),
             py::arg("num_tokens"), py::arg("mask"));
  module.def("block_mask", &block_mask, py::arg("cu_seqlens"), py::arg("num_entries"),
             py::arg("num_tokens"), py::arg("query_block_size"), py::arg("key_block_size"),
             py::arg("causal"), py::arg("window"), py::arg("with_key_bounds"), py::arg("buffer"));
  module.def("context_parallel_split", &context_parallel_split, py::arg("cu_seqlens"),
             py::arg("num_entries"), py::arg("num_tokens"), py::arg("cp_size"),
             py::arg("num_slots"), py::arg("cu_seqlens_padded"), py::arg("token_idx"),
             py::arg("position_ids"), py::arg("inverse"));
}

}  // namespace dsm::bindings
