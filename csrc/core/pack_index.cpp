#include "core/pack_index.h"

#include <algorithm>
#include <cassert>
#include <limits>

#include "core/error.h"
#include "core/pack_strategies.h"
#include "core/random.h"

namespace dsm {
namespace {

[[noreturn]] void throw_empty_document(std::span<const int32_t> lengths) {
  const auto is_empty = [](int32_t length) { return length <= 0; };
  const auto first = std::find_if(lengths.begin(), lengths.end(), is_empty);
  throw InputError(concat("cannot pack: document ", first - lengths.begin(), " has ", *first,
                          " tokens, and so ", std::count_if(first, lengths.end(), is_empty), " of ",
                          lengths.size(), " documents are empty; drop them first"));
}

[[noreturn]] void throw_overlong_document(std::span<const int32_t> lengths, int64_t capacity) {
  const auto is_overlong = [capacity](int32_t length) { return length > capacity; };
  const auto first = std::find_if(lengths.begin(), lengths.end(), is_overlong);
  throw InputError(concat("cannot pack: document ", first - lengths.begin(), " has ", *first,
                          " tokens, more than a pack of ", capacity, "; ",
                          std::count_if(first, lengths.end(), is_overlong), " of ", lengths.size(),
                          " documents are too long: drop or shorten them, or raise the capacity"));
}

void check_plan(const PackPlan& plan) {
  if (plan.capacity < 1 || plan.capacity > max_pack_capacity) {
    throw InputError(concat("cannot pack: the capacity must be 1 to ", max_pack_capacity,
                            " tokens, found ", plan.capacity));
  }
  int32_t shortest = std::numeric_limits<int32_t>::max();
  int32_t longest = 0;
  for (const int32_t length : plan.lengths) {
    shortest = std::min(shortest, length);
    longest = std::max(longest, length);
  }
  if (shortest <= 0) throw_empty_document(plan.lengths);
  if (longest > plan.capacity) throw_overlong_document(plan.lengths, plan.capacity);
}

}  // namespace

template <class Id>
Packs<Id> build_packs(const PackPlan& plan) {
  assert(plan.lengths.size() <= static_cast<size_t>(std::numeric_limits<Id>::max()));
  check_plan(plan);
  const uint64_t key = derive_key({plan.seed, plan.epoch, static_cast<uint64_t>(plan.strategy)});
  switch (plan.strategy) {
    case PackStrategy::random:
      return pack_random<Id>(plan, key);
    case PackStrategy::best_fit:
      return pack_best_fit<Id>(plan, key);
  }
  throw InputError("cannot pack: unknown strategy");
}

template Packs<int32_t> build_packs(const PackPlan&);
template Packs<int64_t> build_packs(const PackPlan&);

}  // namespace dsm
