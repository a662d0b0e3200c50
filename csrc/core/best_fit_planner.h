#pragma once

#include <limits>
#include <utility>
#include <vector>

#include "core/pack_groups.h"
#include "core/residual_set.h"

namespace dsm {

/// Plans exact best-fit-decreasing in O(lengths that occur + capacity).
///
/// Documents are taken longest first, each into the pack with the smallest room that holds it. For
/// a length L and the smallest room R >= L, floor(R / L) documents in a row go to the same pack:
/// after the first, R - L is the tightest fit of all. So one step of the plan fills as many packs
/// of a group as there are documents for.
class BestFitPlanner {
 public:
  explicit BestFitPlanner(int64_t capacity)
      : capacity_(capacity), open_(capacity), newest_(static_cast<size_t>(capacity) + 1, -1) {}

  /// Places `count` documents of one length, which stand from `first` on in the sorted order.
  void place(int64_t length, int64_t count, int64_t first) {
    while (count > 0) {
      const int64_t room = open_.find_at_least(length);
      const bool is_new = room < 0;
      GroupSlice slice =
          is_new ? GroupSlice{-1, 0, std::numeric_limits<int64_t>::max()} : pop(room);
      const int64_t room_before = is_new ? capacity_ : room;
      int64_t repeat = room_before / length;
      int64_t packs = std::min(count / repeat, slice.count);
      if (packs == 0) {  // fewer than one pack takes are left
        repeat = count;
        packs = 1;
      }
      push(room_before - repeat * length, {groups_.add(slice, repeat, first), 0, packs});
      first += packs * repeat;
      count -= packs * repeat;
      if (!is_new && slice.count > packs) {
        push(room, {slice.group, slice.offset + packs, slice.count - packs});
      }
    }
  }

  /// The plan, once all documents are placed.
  PackGroups finish() && {
    for (const int32_t newest : newest_) {
      for (int32_t i = newest; i >= 0; i = links_[static_cast<size_t>(i)].older) {
        groups_.finish(links_[static_cast<size_t>(i)].slice);
      }
    }
    return std::move(groups_);
  }

 private:
  struct Link {
    GroupSlice slice;
    int32_t older;
  };

  void push(int64_t room, const GroupSlice& slice) {
    int32_t& newest = newest_[static_cast<size_t>(room)];
    if (newest < 0) open_.insert(room);
    links_.push_back({slice, newest});
    newest = static_cast<int32_t>(links_.size()) - 1;
  }

  GroupSlice pop(int64_t room) {
    int32_t& newest = newest_[static_cast<size_t>(room)];
    const Link link = links_[static_cast<size_t>(newest)];
    newest = link.older;
    if (newest < 0) open_.erase(room);
    return link.slice;
  }

  int64_t capacity_;
  ResidualSet open_;             // rooms some pack has; room 0 is never asked for
  std::vector<int32_t> newest_;  // room -> newest link, -1 where none
  std::vector<Link> links_;
  PackGroups groups_;
};

}  // namespace dsm
