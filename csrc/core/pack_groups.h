#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "core/bucket_shuffle.h"
#include "core/buffer.h"
#include "core/pack_strategies.h"
#include "core/parallel.h"
#include "core/shuffle.h"

// Strategies that take documents by decreasing length need not tell packs of equal content apart:
// they plan with groups of packs, and a few thousand groups describe any number of packs. Writing
// the packs out then streams through memory.

namespace dsm {

/// Packs that hold what the parent's packs [parent_offset, parent_offset + count) hold and `repeat`
/// documents more, all of one length: the sorted documents from `first` on, pack by pack.
struct PackGroup {
  int32_t parent;  ///< -1: empty packs
  int32_t repeat;
  int32_t documents_per_pack;
  int64_t parent_offset;
  int64_t first;
};

/// The packs [offset, offset + count) of a group.
struct GroupSlice {
  int32_t group;
  int64_t offset;
  int64_t count;
};

/// The groups of a plan, and at the end the slices that all packs are.
class PackGroups {
 public:
  /// Adds the group of packs that the slice's become with `repeat` documents from `first` on.
  int32_t add(const GroupSlice& parent, int64_t repeat, int64_t first) {
    const int32_t before = parent.group < 0 ? 0 : group(parent.group).documents_per_pack;
    const int32_t added = static_cast<int32_t>(repeat);
    groups_.push_back({parent.group, added, before + added, parent.offset, first});
    return static_cast<int32_t>(groups_.size()) - 1;
  }

  void finish(const GroupSlice& slice) {
    slices_.push_back(slice);
    slice_begins_.push_back(num_packs_);
    num_packs_ += slice.count;
  }

  const PackGroup& group(int32_t idx) const { return groups_[static_cast<size_t>(idx)]; }
  int64_t num_packs() const { return num_packs_; }

  /// Calls visit(first pack, part of a slice) for the packs [first, last) in order.
  template <class Visit>
  void for_each_slice(int64_t first, int64_t last, Visit visit) const {
    const auto after = std::upper_bound(slice_begins_.begin(), slice_begins_.end(), first);
    size_t i = static_cast<size_t>(after - slice_begins_.begin()) - 1;
    for (int64_t pack = first; pack < last; ++i) {
      GroupSlice slice = slices_[i];
      const int64_t skipped = pack - slice_begins_[i];
      slice.offset += skipped;
      slice.count = std::min(slice.count - skipped, last - pack);
      visit(pack, slice);
      pack += slice.count;
    }
  }

 private:
  int64_t num_packs_ = 0;
  std::vector<PackGroup> groups_;
  std::vector<GroupSlice> slices_;
  std::vector<int64_t> slice_begins_;
};

/// Documents by decreasing slots, those of equal slots in random order.
template <class Id>
class SortedDocuments {
 public:
  SortedDocuments(const PackInput& input, uint64_t key);

  const Id* data() const { return ids_.data(); }

  /// Calls place(slots, count, first) for each class of equal documents, the longest first.
  template <class Place>
  void for_each_class(Place place) const {
    for (const Class& c : classes_) place(c.slots, c.count, c.first);
  }

 private:
  struct Class {
    int64_t slots;
    int64_t count;
    int64_t first;
  };

  template <class SlotsOf>
  void sort(const PackInput& input, SlotsOf slots);

  Buffer<Id> ids_;
  std::vector<Class> classes_;
};

template <class Id>
SortedDocuments<Id>::SortedDocuments(const PackInput& input, uint64_t key)
    : ids_(input.num_kept, input.arena) {
  input.with_slots([&](auto slots) { sort(input, slots); });
  for_each_part(input.threads, static_cast<int64_t>(classes_.size()), [&](int64_t i) {
    const Class& c = classes_[static_cast<size_t>(i)];
    shuffle(ids_.data() + c.first, c.count, derive_key({key, static_cast<uint64_t>(c.slots)}));
  });
}

/// A counting sort, each thread a part of the documents: they stay in order within a class.
template <class Id>
template <class SlotsOf>
void SortedDocuments<Id>::sort(const PackInput& input, SlotsOf slots) {
  const int64_t n = input.num_documents();
  const int64_t num_lengths = int64_t{input.longest} + 1;
  const int64_t parts = std::clamp<int64_t>(n / num_lengths, 1, input.threads);
  std::vector<int64_t> cursor(static_cast<size_t>(parts * num_lengths), 0);
  for_each_part(input.threads, parts, [&](int64_t part) {
    int64_t* counts = cursor.data() + part * num_lengths;
    const int64_t last = part_begin(n, parts, part + 1);
    for (int64_t i = part_begin(n, parts, part); i < last; ++i) ++counts[slots(i)];
  });
  int64_t position = 0;
  for (int64_t length = num_lengths - 1; length > 0; --length) {
    const int64_t first = position;
    for (int64_t part = 0; part < parts; ++part) {
      int64_t& count = cursor[static_cast<size_t>(part * num_lengths + length)];
      position += std::exchange(count, position);
    }
    if (position > first) classes_.push_back({length, position - first, first});
  }
  for_each_part(input.threads, parts, [&](int64_t part) {
    int64_t* next = cursor.data() + part * num_lengths;
    const int64_t last = part_begin(n, parts, part + 1);
    for (int64_t i = part_begin(n, parts, part); i < last; ++i) {
      const int32_t taken = slots(i);
      if (taken > 0) ids_[next[taken]++] = static_cast<Id>(i);
    }
  });
}

/// Writes the finished groups' packs in seeded random order.
template <class Id>
Packs<Id> write_packs(const PackGroups& groups, const SortedDocuments<Id>& sorted,
                      const PackInput& input, uint64_t key) {
  const int64_t num_packs = groups.num_packs();
  Buffer<Id> place_of(num_packs, input.arena);
  struct Place {
    Id* next;
    void operator()(uint64_t entry) { *next++ = static_cast<Id>(entry); }
  } next_place{place_of.data()};
  BucketShuffle(num_packs, key)
      .visit([](int64_t pack) { return static_cast<uint64_t>(pack); }, input.threads, num_packs,
             input.arena, next_place);

  Packs<Id> packs;
  packs.offsets = Buffer<int64_t>(num_packs + 1, input.arena);
  packs.documents = Buffer<Id>(input.num_kept, input.arena);
  const int64_t parts = input.threads;
  packs.offsets[0] = 0;
  for_each_part(input.threads, parts, [&](int64_t part) {
    groups.for_each_slice(part_begin(num_packs, parts, part),
                          part_begin(num_packs, parts, part + 1),
                          [&](int64_t pack, const GroupSlice& slice) {
                            const int64_t documents = groups.group(slice.group).documents_per_pack;
                            for (int64_t i = 0; i < slice.count; ++i) {
                              packs.offsets[place_of[pack + i] + 1] = documents;
                            }
                          });
  });
  for (int64_t p = 0; p < num_packs; ++p) packs.offsets[p + 1] += packs.offsets[p];

  struct Source {  // where the next pack of a slice finds its documents of one length
    const Id* next;
    int32_t repeat;
  };
  for_each_part(input.threads, parts, [&](int64_t part) {
    std::vector<Source> sources;
    groups.for_each_slice(
        part_begin(num_packs, parts, part), part_begin(num_packs, parts, part + 1),
        [&](int64_t pack, const GroupSlice& slice) {
          sources.clear();
          int64_t offset = slice.offset;
          for (int32_t idx = slice.group; idx >= 0; idx = groups.group(idx).parent) {
            const PackGroup& group = groups.group(idx);
            sources.push_back({sorted.data() + group.first + offset * group.repeat, group.repeat});
            offset += group.parent_offset;
          }
          std::reverse(sources.begin(), sources.end());
          for (int64_t i = 0; i < slice.count; ++i) {
            Id* out = packs.documents.data() + packs.offsets[place_of[pack + i]];
            for (Source& source : sources) {
              for (int32_t k = 0; k < source.repeat; ++k) *out++ = *source.next++;
            }
          }
        });
  });
  return packs;
}

}  // namespace dsm
