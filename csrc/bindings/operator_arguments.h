#pragma once

#include <cstdint>

#include "core/dense_mask.h"
#include "core/packed_metadata.h"
#include "core/segment_loss.h"

// The operators take addresses as integers: reading a tensor's costs far less than wrapping it.
// What the modules of the CPU and of CUDA share.

namespace dsm::bindings {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

inline PackedMetadataArguments packed_metadata_arguments(
    uintptr_t cu_seqlens, int64_t num_entries, int64_t num_tokens, uintptr_t tokens,
    uintptr_t supervised, uintptr_t position_ids, uintptr_t document_ids, uintptr_t segment_ends,
    uintptr_t labels, uintptr_t loss_weights, uintptr_t max_seqlen) {
  return {at<const int32_t>(cu_seqlens),
          num_entries,
          num_tokens,
          at<const int64_t>(tokens),
          at<const uint8_t>(supervised),
          at<int64_t>(position_ids),
          at<int32_t>(document_ids),
          at<int32_t>(segment_ends),
          at<int64_t>(labels),
          at<float>(loss_weights),
          at<int32_t>(max_seqlen)};
}

inline DenseMaskArguments dense_mask_arguments(uintptr_t cu_seqlens, int64_t num_entries,
                                               int64_t num_tokens, int64_t row_length, bool banded,
                                               bool causal, int64_t window, uintptr_t mask) {
  return {at<const int32_t>(cu_seqlens),
          num_entries,
          num_tokens,
          row_length,
          banded,
          causal,
          window,
          at<void>(mask)};
}

/// Calls write(bits) with the bits of the mask whose elements have so many bytes: bool, bfloat16,
/// float32.
template <class Write>
auto with_mask_bits(int element_bytes, const Write& write) {
  if (element_bytes == 1) return write(bool_mask_bits);
  if (element_bytes == 2) return write(bfloat16_mask_bits);
  return write(float32_mask_bits);
}

inline SegmentLossArguments segment_loss_arguments(uintptr_t token_losses, uintptr_t loss_weights,
                                                   int64_t num_tokens, uintptr_t cu_seqlens,
                                                   int64_t num_documents, uintptr_t slice_ids,
                                                   int64_t num_columns, int64_t num_slices,
                                                   uintptr_t document_losses,
                                                   uintptr_t document_counts,
                                                   uintptr_t slice_losses, uintptr_t slice_counts) {
  return {at<const float>(token_losses),
          at<const float>(loss_weights),
          num_tokens,
          at<const int32_t>(cu_seqlens),
          num_documents,
          at<const int32_t>(slice_ids),
          num_columns,
          num_slices,
          at<double>(document_losses),
          at<int64_t>(document_counts),
          at<double>(slice_losses),
          at<int64_t>(slice_counts)};
}

}  // namespace dsm::bindings
