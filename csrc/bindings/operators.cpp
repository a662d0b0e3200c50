#include "bindings/core_bindings.h"
#include "bindings/operator_arguments.h"
#include "core/block_mask.h"
#include "core/context_parallel.h"

namespace py = pybind11;

namespace dsm::bindings {
namespace {

// The operators take addresses as integers: reading a tensor's costs far less than wrapping it.
void packed_metadata(uintptr_t cu_seqlens, int64_t num_entries, int64_t num_tokens,
                     uintptr_t tokens, uintptr_t supervised, uintptr_t position_ids,
                     uintptr_t document_ids, uintptr_t segment_ends, uintptr_t labels,
                     uintptr_t loss_weights, uintptr_t max_seqlen) {
  py::gil_scoped_release release;
  dsm::packed_metadata(packed_metadata_arguments(cu_seqlens, num_entries, num_tokens, tokens,
                                                 supervised, position_ids, document_ids,
                                                 segment_ends, labels, loss_weights, max_seqlen));
}

void dense_mask(uintptr_t cu_seqlens, int64_t num_entries, int64_t num_tokens, int64_t row_length,
                bool banded, bool causal, int64_t window, int element_bytes, uintptr_t mask) {
  py::gil_scoped_release release;
  const DenseMaskArguments arguments = dense_mask_arguments(
      cu_seqlens, num_entries, num_tokens, row_length, banded, causal, window, mask);
  with_mask_bits(element_bytes, [&](auto bits) { dsm::dense_mask(arguments, bits); });
}

void segment_loss(uintptr_t token_losses, uintptr_t loss_weights, int64_t num_tokens,
                  uintptr_t cu_seqlens, int64_t num_documents, uintptr_t slice_ids,
                  int64_t num_columns, int64_t num_slices, uintptr_t document_losses,
                  uintptr_t document_counts, uintptr_t slice_losses, uintptr_t slice_counts) {
  py::gil_scoped_release release;
  dsm::segment_loss(segment_loss_arguments(
      token_losses, loss_weights, num_tokens, cu_seqlens, num_documents, slice_ids, num_columns,
      num_slices, document_losses, document_counts, slice_losses, slice_counts));
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
  module.def("packed_metadata", &packed_metadata);
  module.def("dense_mask", &dense_mask);
  module.def("segment_loss", &segment_loss);
  module.def("block_mask", &block_mask);
  module.def("context_parallel_split", &context_parallel_split);
}

}  // namespace dsm::bindings
