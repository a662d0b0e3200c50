#include "core/packed_metadata.h"

#include <algorithm>

#include "core/error.h"
#include "core/vector_loops.h"

namespace dsm {

void check_cu_seqlens(std::span<const int32_t> cu_seqlens, int64_t num_tokens) {
  if (cu_seqlens.size() < 2 || cu_seqlens.front() != 0 || cu_seqlens.back() != num_tokens) {
    throw InputError(concat(
        "cu_seqlens: expected two or more entries from 0 to ", num_tokens, ", found ",
        cu_seqlens.size(), " entries",
        cu_seqlens.empty() ? "" : concat(" from ", cu_seqlens.front(), " to ", cu_seqlens.back())));
  }
  const auto fall = std::is_sorted_until(cu_seqlens.begin(), cu_seqlens.end());
  if (fall != cu_seqlens.end()) {
    throw InputError(concat("cu_seqlens: falls at entry ", fall - cu_seqlens.begin(), ", from ",
                            *(fall - 1), " to ", *fall));
  }
}

void packed_metadata(const PackedMetadataArguments& arguments) {
  check_cu_seqlens({arguments.cu_seqlens, static_cast<size_t>(arguments.num_entries)},
                   arguments.num_tokens);
  LongestDocument longest{0};
  for (int64_t document = 0; document + 1 < arguments.num_entries; ++document) {
    const int32_t begin = arguments.cu_seqlens[document];
    const int32_t end = arguments.cu_seqlens[document + 1];
    longest.take_in({end - begin});
    const int64_t length = end - begin;
    fill_ascending(arguments.position_ids + begin, length, 0);
    fill_equal(arguments.document_ids + begin, length, static_cast<int32_t>(document));
    fill_equal(arguments.segment_ends + begin, length, end);
    for (int64_t i = begin; i < end; ++i) {
      const TokenLabel label = i + 1 < end ? label_of(arguments, i + 1) : TokenLabel{};
      arguments.labels[i] = label.id;
      arguments.loss_weights[i] = label.loss_weight;
    }
  }
  *arguments.max_seqlen = longest.length;
}

}  // namespace dsm
