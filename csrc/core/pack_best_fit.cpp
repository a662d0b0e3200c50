#include "core/best_fit_planner.h"
#include "core/pack_groups.h"
#include "core/pack_strategies.h"

namespace dsm {

template <class Id>
Packs<Id> pack_best_fit(const PackInput& input) {
  const SortedDocuments<Id> sorted(input, derive_key({input.key, 0}));
  BestFitPlanner planner(input.capacity);
  sorted.for_each_class(
      [&](int64_t slots, int64_t count, int64_t first) { planner.place(slots, count, first); });
  return write_packs(std::move(planner).finish(), sorted, input, derive_key({input.key, 1}));
}

template Packs<int32_t> pack_best_fit(const PackInput&);
template Packs<int64_t> pack_best_fit(const PackInput&);

}  // namespace dsm
