#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/kernel_body.h"

namespace dsm {

struct SegmentLossArguments {
  const float* token_losses;  // [num_tokens]
  const float* loss_weights;  // [num_tokens]
  int64_t num_tokens;
  const int32_t* cu_seqlens;  // [num_documents + 1]
  int64_t num_documents;
  const int32_t* slice_ids;  // [num_documents, num_columns], -1 where there is none
  int64_t num_columns;
  int64_t num_slices;
  double* document_losses;   // [num_documents]
  int64_t* document_counts;  // [num_documents]
  double* slice_losses;      // [num_slices]
  int64_t* slice_counts;     // [num_slices]
};

/// A sum of losses and the number of its terms. Every sum here is of threads_per_block lanes, lane
/// i of the terms i, i + threads_per_block, ... in order, which are then folded in a tree.
struct LossSum {
  double loss;
  int64_t count;

  DSM_HOST_DEVICE void take_in(LossSum other) {
    loss += other.loss;
    count += other.count;
  }
};

/// What a position adds: selected, since zero times a NaN is a NaN. The product of two floats is
/// exact in a double, so it is the same whether it is fused with the addition or not.
DSM_HOST_DEVICE inline LossSum token_loss(float loss, float weight) {
  const double product = static_cast<double>(loss) * static_cast<double>(weight);
  const bool is_counted = weight > 0;
  return {is_counted ? product : 0.0, is_counted ? 1 : 0};
}

/// The lane of a document's tokens.
DSM_HOST_DEVICE inline LossSum document_lane(const SegmentLossArguments& arguments,
                                             int64_t document, int lane) {
  LossSum sum{0, 0};
  const int64_t end = arguments.cu_seqlens[document + 1];
  for (int64_t i = arguments.cu_seqlens[document] + int64_t{lane}; i < end;
       i += threads_per_block) {
    sum.take_in(token_loss(arguments.token_losses[i], arguments.loss_weights[i]));
  }
  return sum;
}

/// Whether the document names the slice in one column or more.
DSM_HOST_DEVICE inline bool is_in_slice(const SegmentLossArguments& arguments, int64_t document,
                                        int64_t slice) {
  bool is_in = false;
  for (int64_t column = 0; column < arguments.num_columns; ++column) {
    is_in |= arguments.slice_ids[document * arguments.num_columns + column] == slice;
  }
  return is_in;
}

/// The lane of a slice's documents, whose sums are known.
DSM_HOST_DEVICE inline LossSum slice_lane(const SegmentLossArguments& arguments, int64_t slice,
                                          int lane) {
  LossSum sum{0, 0};
  for (int64_t document = lane; document < arguments.num_documents; document += threads_per_block) {
    if (!is_in_slice(arguments, document, slice)) continue;
    sum.take_in({arguments.document_losses[document], arguments.document_counts[document]});
  }
  return sum;
}

/// The CPU loop: documents, then slices. Throws InputError as check_cu_seqlens does, and where a
/// slice id is neither -1 nor below num_slices.
void segment_loss(const SegmentLossArguments& arguments);

}  // namespace dsm
