#include "core/pack_deal.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace dsm {

std::vector<int64_t> deal_packs(std::span<const int64_t> costs, int64_t ranks) {
  const int64_t n = static_cast<int64_t>(costs.size());
  if (ranks < 1 || n % ranks != 0) {
    throw InputError(concat(n, " packs cannot be dealt evenly to ", ranks, " ranks"));
  }
  const auto cost_of = [&](int64_t pack) { return costs[static_cast<size_t>(pack)]; };
  std::vector<int64_t> packs(static_cast<size_t>(n));
  std::iota(packs.begin(), packs.end(), int64_t{0});
  std::stable_sort(packs.begin(), packs.end(),
                   [&](int64_t a, int64_t b) { return cost_of(a) > cost_of(b); });
  std::vector<__int128> sums(static_cast<size_t>(ranks), 0);
  std::vector<int64_t> poorest(static_cast<size_t>(ranks));
  std::vector<int64_t> dealt(static_cast<size_t>(n));
  for (int64_t row = 0; row < n; row += ranks) {
    std::iota(poorest.begin(), poorest.end(), int64_t{0});
    std::stable_sort(poorest.begin(), poorest.end(), [&](int64_t a, int64_t b) {
      return sums[static_cast<size_t>(a)] < sums[static_cast<size_t>(b)];
    });
    for (int64_t i = 0; i < ranks; ++i) {
      const int64_t rank = poorest[static_cast<size_t>(i)];
      const int64_t pack = packs[static_cast<size_t>(row + i)];
      dealt[static_cast<size_t>(row + rank)] = pack;
      sums[static_cast<size_t>(rank)] += cost_of(pack);
    }
  }
  return dealt;
}

}  // namespace dsm
