#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/random.h"

namespace dsm::test {

/// cu_seqlens of a random pack: 1 to max_documents documents, empty ones among them, and sometimes
/// padding that repeats num_tokens.
inline std::vector<int32_t> random_cu_seqlens(RandomStream& random, int64_t num_tokens,
                                              int64_t max_documents) {
  std::vector<int32_t> cu_seqlens{0};
  const auto num_cuts = random.below(static_cast<uint64_t>(max_documents));
  for (uint64_t i = 0; i < num_cuts; ++i) {
    cu_seqlens.push_back(static_cast<int32_t>(random.below(static_cast<uint64_t>(num_tokens) + 1)));
  }
  std::sort(cu_seqlens.begin(), cu_seqlens.end());
  cu_seqlens.resize(cu_seqlens.size() + 1 + random.below(4), static_cast<int32_t>(num_tokens));
  return cu_seqlens;
}

}  // namespace dsm::test
