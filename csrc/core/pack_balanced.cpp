// Longest documents first, each into the pack of least cost that has room for it: the greedy rule
// of makespan scheduling (Graham, LPT) under a capacity. Packs of equal content are placed as one
// group, as in best-fit, so a plan takes a few passes over the lengths that occur.

#include <limits>
#include <queue>
#include <vector>

#include "core/pack_groups.h"

namespace dsm {
namespace {

class BalancedPlanner {
 public:
  BalancedPlanner(const PackInput& input, int64_t num_packs)
      : capacity_(input.capacity),
        cost_(input.cost),
        newest_parked_(static_cast<size_t>(input.capacity) + 1, -1),
        shortest_room_(input.capacity + 1) {
    if (num_packs > 0) park({{-1, 0, num_packs}, input.capacity, 0});
  }

  /// Places `count` documents of one length, no longer than any before.
  void place(int64_t length, int64_t count, int64_t first) {
    while (shortest_room_ > length) {
      for_each_parked(--shortest_room_, [&](const Open& open) { push(open); });
    }
    while (count > 0) {
      if (heap_.empty()) open_packs((count * length + capacity_ - 1) / capacity_);
      Open open = pop();
      const int64_t packs = std::min(count, open.slice.count);
      if (open.slice.count > packs) {
        Open rest = open;
        rest.slice.offset += packs;
        rest.slice.count -= packs;
        push(rest);
      }
      open.slice = {groups_.add(open.slice, 1, first), 0, packs};
      open.room -= length;
      open.cost += cost_of(length);
      open.room >= length ? push(open) : park(open);
      first += packs;
      count -= packs;
    }
  }

  PackGroups finish() && {
    while (!heap_.empty()) finish(pop());
    for (int64_t room = 0; room < shortest_room_; ++room) {
      for_each_parked(room, [&](const Open& open) { finish(open); });
    }
    return std::move(groups_);
  }

 private:
  struct Open {
    GroupSlice slice;
    int64_t room;
    uint64_t cost;
  };
  struct Parked {
    Open open;
    int32_t older;
  };
  struct Ranked {
    Open open;
    uint64_t age;  // decides between equal costs
    bool operator>(const Ranked& other) const {
      return open.cost != other.open.cost ? open.cost > other.open.cost : age > other.age;
    }
  };

  uint64_t cost_of(int64_t length) const {
    const uint64_t slots = static_cast<uint64_t>(length);
    return cost_.token * slots + cost_.square * slots * slots;
  }

  void open_packs(int64_t count) { push({{-1, 0, count}, capacity_, 0}); }
  void push(const Open& open) { heap_.push({open, age_++}); }
  void park(const Open& open) {
    int32_t& newest = newest_parked_[static_cast<size_t>(open.room)];
    parked_.push_back({open, newest});
    newest = static_cast<int32_t>(parked_.size()) - 1;
  }
  template <class Visit>
  void for_each_parked(int64_t room, Visit visit) const {
    for (int32_t i = newest_parked_[static_cast<size_t>(room)]; i >= 0;) {
      const Parked& parked = parked_[static_cast<size_t>(i)];
      visit(parked.open);
      i = parked.older;
    }
  }
  Open pop() {
    const Open open = heap_.top().open;
    heap_.pop();
    return open;
  }
  void finish(const Open& open) {
    if (open.slice.group >= 0) groups_.finish(open.slice);  // a pack nothing went to is none
  }

  int64_t capacity_;
  PackCost cost_;
  std::priority_queue<Ranked, std::vector<Ranked>, std::greater<>> heap_;  // room for the length
  std::vector<Parked> parked_;          // too little room for the present length
  std::vector<int32_t> newest_parked_;  // room -> newest of parked_, -1 where none
  int64_t shortest_room_;               // whose packs are in the heap, and all above
  uint64_t age_ = 0;
  PackGroups groups_;
};

}  // namespace

template <class Id>
Packs<Id> pack_balanced(const PackInput& input) {
  const SortedDocuments<Id> sorted(input, derive_key({input.key, 0}));
  const int64_t fewest = (input.total_slots + input.capacity - 1) / input.capacity;
  // Fewer packs to begin with are fuller but leave some documents without room, and those open
  // packs of their own. Plans cost little: take the best of a few.
  PackGroups best;
  int64_t packs_of_best = std::numeric_limits<int64_t>::max();
  for (const int64_t slack_permille : {0, 2, 5, 10, 20, 40, 80}) {
    BalancedPlanner planner(input, fewest + fewest * slack_permille / 1000);
    sorted.for_each_class(
        [&](int64_t slots, int64_t count, int64_t first) { planner.place(slots, count, first); });
    PackGroups groups = std::move(planner).finish();
    if (groups.num_packs() < packs_of_best) {
      packs_of_best = groups.num_packs();
      best = std::move(groups);
    }
  }
  return write_packs(best, sorted, input, derive_key({input.key, 1}));
}

template Packs<int32_t> pack_balanced(const PackInput&);
template Packs<int64_t> pack_balanced(const PackInput&);

}  // namespace dsm
