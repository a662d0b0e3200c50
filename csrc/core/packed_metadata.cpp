#include "core/packed_metadata.h"

#include <algorithm>
#include <cassert>

#include "core/error.h"

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

void packed_metadata(std::span<const int32_t> cu_seqlens, std::span<int64_t> position_ids,
                     std::span<int32_t> document_ids) {
  assert(position_ids.size() == document_ids.size());
  const int64_t num_tokens = static_cast<int64_t>(position_ids.size());
  check_cu_seqlens(cu_seqlens, num_tokens);
  fill_packed_metadata(cu_seqlens.data(), static_cast<int64_t>(cu_seqlens.size()), 0, num_tokens,
                       position_ids.data(), document_ids.data());
}

}  // namespace dsm
