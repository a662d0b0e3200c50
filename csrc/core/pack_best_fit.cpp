// Exact best-fit-decreasing in O(documents + capacity).
//
// Documents are taken longest first, each into the pack with the smallest room that holds it. For
// a length L and the smallest room R >= L, floor(R / L) documents in a row go to the same pack:
// after the first, R - L is the tightest fit of all. So packs with equal content need not be told
// apart: a Node stands for `count` of them, and one step of the plan fills all of them at once. A
// few thousand nodes describe any number of packs; writing them out streams through memory.

#include <algorithm>
#include <limits>
#include <vector>

#include "core/pack_strategies.h"
#include "core/residual_set.h"
#include "core/shuffle.h"

namespace dsm {
namespace {

/// Packs that hold what the parent's packs [parent_offset, parent_offset + count) hold and
/// `repeat` documents more, all of one length: the sorted documents from `first` on, pack by pack.
struct Node {
  int32_t parent;
  int32_t repeat;
  int32_t documents_per_pack;
  int64_t parent_offset;
  int64_t first;
};

/// The packs [offset, offset + count) of a node, all with the same room.
struct Slice {
  int32_t node;
  int64_t offset;
  int64_t count;
};

class BestFitPlanner {
 public:
  explicit BestFitPlanner(int64_t capacity)
      : capacity_(capacity), open_(capacity), newest_(static_cast<size_t>(capacity) + 1, -1) {}

  int64_t num_packs() const { return num_packs_; }
  const Node& node(int32_t idx) const { return nodes_[static_cast<size_t>(idx)]; }

  /// Places `count` documents of one length, which stand from `first` on in the sorted order.
  void place(int64_t length, int64_t count, int64_t first) {
    while (count > 0) {
      const int64_t room = open_.find_at_least(length);
      const bool is_new = room < 0;
      Slice slice = is_new ? Slice{-1, 0, std::numeric_limits<int64_t>::max()} : pop(room);
      const int64_t room_before = is_new ? capacity_ : room;
      int64_t repeat = room_before / length;
      int64_t packs = std::min(count / repeat, slice.count);
      if (packs == 0) {  // fewer than one pack takes are left
        repeat = count;
        packs = 1;
      }
      push(room_before - repeat * length, {add_node(slice, repeat, first), 0, packs});
      first += packs * repeat;
      count -= packs * repeat;
      if (is_new) {
        num_packs_ += packs;
      } else if (slice.count > packs) {
        push(room, {slice.node, slice.offset + packs, slice.count - packs});
      }
    }
  }

  /// Calls visit(slice) for all packs, grouped by their final content.
  template <class Visit>
  void for_each_slice(Visit visit) const {
    for (const int32_t newest : newest_) {
      for (int32_t i = newest; i >= 0; i = links_[static_cast<size_t>(i)].older) {
        visit(links_[static_cast<size_t>(i)].slice);
      }
    }
  }

 private:
  struct Link {
    Slice slice;
    int32_t older;
  };

  int32_t add_node(const Slice& parent, int64_t repeat, int64_t first) {
    const int32_t before = parent.node < 0 ? 0 : node(parent.node).documents_per_pack;
    const int32_t added = static_cast<int32_t>(repeat);
    nodes_.push_back({parent.node, added, before + added, parent.offset, first});
    return static_cast<int32_t>(nodes_.size()) - 1;
  }

  void push(int64_t room, const Slice& slice) {
    int32_t& newest = newest_[static_cast<size_t>(room)];
    if (newest < 0) open_.insert(room);
    links_.push_back({slice, newest});
    newest = static_cast<int32_t>(links_.size()) - 1;
  }

  Slice pop(int64_t room) {
    int32_t& newest = newest_[static_cast<size_t>(room)];
    const Link link = links_[static_cast<size_t>(newest)];
    newest = link.older;
    if (newest < 0) open_.erase(room);
    return link.slice;
  }

  int64_t capacity_;
  int64_t num_packs_ = 0;
  ResidualSet open_;             // rooms some pack has; room 0 is never asked for
  std::vector<int32_t> newest_;  // room -> newest link, -1 where none
  std::vector<Link> links_;
  std::vector<Node> nodes_;
};

/// Documents by decreasing length, those of equal length in random order; `place` is called for
/// each length with the number of its documents and where they stand.
template <class Id, class Place>
Buffer<Id> sort_by_length(const PackPlan& plan, uint64_t key, Place place) {
  const int64_t n = static_cast<int64_t>(plan.lengths.size());
  std::vector<int64_t> counts(static_cast<size_t>(plan.capacity) + 1, 0);
  for (const int32_t length : plan.lengths) ++counts[static_cast<size_t>(length)];

  std::vector<int64_t> cursor(counts.size(), 0);
  int64_t start = 0;
  for (size_t length = counts.size(); length-- > 1;) {
    cursor[length] = start;
    start += counts[length];
  }
  Buffer<Id> sorted(n);
  for (int64_t i = 0; i < n; ++i) {
    sorted[cursor[static_cast<size_t>(plan.lengths[static_cast<size_t>(i)])]++] =
        static_cast<Id>(i);
  }
  for (size_t length = counts.size(); length-- > 1;) {
    if (counts[length] == 0) continue;
    const int64_t first = cursor[length] - counts[length];
    shuffle(sorted.span().subspan(static_cast<size_t>(first), static_cast<size_t>(counts[length])),
            RandomStream(derive_key({key, length})));
    place(static_cast<int64_t>(length), counts[length], first);
  }
  return sorted;
}

/// Where in `sorted` the next pack of a slice finds its documents of one length.
template <class Id>
struct Source {
  const Id* next;
  int32_t repeat;
};

template <class Id>
void write_packs(const BestFitPlanner& planner, const Buffer<Id>& sorted,
                 const Buffer<int64_t>& place_of, Packs<Id>& packs) {
  std::vector<Source<Id>> sources;
  int64_t pack = 0;
  planner.for_each_slice([&](const Slice& slice) {
    sources.clear();
    int64_t offset = slice.offset;
    for (int32_t idx = slice.node; idx >= 0; idx = planner.node(idx).parent) {
      const Node& node = planner.node(idx);
      sources.push_back({sorted.data() + node.first + offset * node.repeat, node.repeat});
      offset += node.parent_offset;
    }
    std::reverse(sources.begin(), sources.end());
    for (int64_t i = 0; i < slice.count; ++i) {
      Id* out = packs.documents.data() + packs.offsets[place_of[pack++]];
      for (Source<Id>& source : sources) {
        out = std::copy_n(source.next, source.repeat, out);
        source.next += source.repeat;
      }
    }
  });
}

}  // namespace

template <class Id>
Packs<Id> pack_best_fit(const PackPlan& plan, uint64_t key) {
  BestFitPlanner planner(plan.capacity);
  const Buffer<Id> sorted = sort_by_length<Id>(
      plan, derive_key({key, 0}),
      [&](int64_t length, int64_t count, int64_t first) { planner.place(length, count, first); });

  const int64_t num_packs = planner.num_packs();
  Buffer<int64_t> place_of(num_packs);
  shuffle_into(place_of.span(), derive_key({key, 1}), [](int64_t i) { return i; });

  Packs<Id> packs{Buffer<int64_t>(num_packs + 1), Buffer<Id>(sorted.size())};
  packs.offsets[0] = 0;
  int64_t pack = 0;
  planner.for_each_slice([&](const Slice& slice) {
    const int64_t documents = planner.node(slice.node).documents_per_pack;
    for (int64_t i = 0; i < slice.count; ++i) packs.offsets[place_of[pack++] + 1] = documents;
  });
  for (int64_t p = 0; p < num_packs; ++p) packs.offsets[p + 1] += packs.offsets[p];
  write_packs(planner, sorted, place_of, packs);
  return packs;
}

template Packs<int32_t> pack_best_fit(const PackPlan&, uint64_t);
template Packs<int64_t> pack_best_fit(const PackPlan&, uint64_t);

}  // namespace dsm
