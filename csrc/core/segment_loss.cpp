#include "core/segment_loss.h"

#include <algorithm>
#include <array>
#include <bit>

#include "core/error.h"
#include "core/packed_metadata.h"

namespace dsm {
namespace {

class LaneSums {
 public:
  /// For so many terms. Lanes that get none are left out: adding their +0 changes no bit.
  explicit LaneSums(int64_t num_terms)
      : num_lanes_(static_cast<int>(std::bit_ceil(
            static_cast<uint64_t>(std::clamp<int64_t>(num_terms, 1, threads_per_block))))) {
    std::fill_n(losses_.begin(), num_lanes_, 0.0);
    std::fill_n(counts_.begin(), num_lanes_, 0);
  }

  void add(int lane, LossSum term) {
    losses_[static_cast<size_t>(lane)] += term.loss;
    counts_[static_cast<size_t>(lane)] += term.count;
  }

  /// The tree of fold().
  LossSum total() {
    for (int stride = num_lanes_ / 2; stride > 0; stride /= 2) {
      for (int lane = 0; lane < stride; ++lane) {
        const auto other = static_cast<size_t>(lane + stride);
        add(lane, {losses_[other], counts_[other]});
      }
    }
    return {losses_[0], counts_[0]};
  }

 private:
  int num_lanes_;
  std::array<double, threads_per_block> losses_;
  std::array<int64_t, threads_per_block> counts_;
};

LossSum document_sum(const SegmentLossArguments& arguments, int64_t begin, int64_t end) {
  LaneSums sums(end - begin);
  for (int64_t first = begin; first < end; first += threads_per_block) {
    const int lanes = static_cast<int>(std::min<int64_t>(end - first, threads_per_block));
    for (int lane = 0; lane < lanes; ++lane) {
      sums.add(lane, token_loss(arguments.token_losses[first + lane],
                                arguments.loss_weights[first + lane]));
    }
  }
  return sums.total();
}

void check_slice_ids(const SegmentLossArguments& arguments) {
  for (int64_t i = 0; i < arguments.num_documents * arguments.num_columns; ++i) {
    const int32_t slice = arguments.slice_ids[i];
    if (slice >= -1 && slice < arguments.num_slices) continue;
    throw InputError(concat("slice_ids: expected -1 or an index below ", arguments.num_slices,
                            ", found ", slice, " at document ", i / arguments.num_columns));
  }
}

}  // namespace

void segment_loss(const SegmentLossArguments& arguments) {
  check_cu_seqlens({arguments.cu_seqlens, static_cast<size_t>(arguments.num_documents + 1)},
                   arguments.num_tokens);
  check_slice_ids(arguments);
  for (int64_t document = 0; document < arguments.num_documents; ++document) {
    const LossSum sum =
        document_sum(arguments, arguments.cu_seqlens[document], arguments.cu_seqlens[document + 1]);
    arguments.document_losses[document] = sum.loss;
    arguments.document_counts[document] = sum.count;
  }
  for (int64_t slice = 0; slice < arguments.num_slices; ++slice) {
    LaneSums sums(arguments.num_documents);
    for (int64_t document = 0; document < arguments.num_documents; ++document) {
      if (!is_in_slice(arguments, document, slice)) continue;
      sums.add(static_cast<int>(document % threads_per_block),
               {arguments.document_losses[document], arguments.document_counts[document]});
    }
    const LossSum sum = sums.total();
    arguments.slice_losses[slice] = sum.loss;
    arguments.slice_counts[slice] = sum.count;
  }
}

}  // namespace dsm
