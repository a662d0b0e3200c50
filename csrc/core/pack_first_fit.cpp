#include <algorithm>
#include <utility>
#include <vector>

#include "core/document_shuffle.h"
#include "core/pack_strategies.h"

namespace dsm {
namespace {

constexpr int64_t few_documents = int64_t{1} << 22;  // to hold them all at once is no matter

/// The rooms of packs in the order they were opened, under a tree of maxima; packs not yet opened
/// are empty, so the first one with room is always there.
class RoomTree {
 public:
  explicit RoomTree(int64_t capacity)
      : capacity_(static_cast<int32_t>(capacity)), rooms_{0, capacity_} {}

  /// Takes `slots` from the first pack that has them, and returns its number.
  int64_t take(int32_t slots) {
    while (rooms_[1] < slots) grow();
    size_t node = 1;
    while (node < num_leaves_) {
      node *= 2;
      if (rooms_[node] < slots) ++node;
    }
    const int64_t pack = static_cast<int64_t>(node - num_leaves_);
    rooms_[node] -= slots;
    for (node /= 2; node > 0; node /= 2) {
      const int32_t largest = std::max(rooms_[2 * node], rooms_[2 * node + 1]);
      if (rooms_[node] == largest) break;
      rooms_[node] = largest;
    }
    return pack;
  }

 private:
  void grow() {
    std::vector<int32_t> larger(4 * num_leaves_, capacity_);
    for (size_t level = 1; level <= num_leaves_; level *= 2) {
      std::copy_n(rooms_.begin() + static_cast<int64_t>(level), level,
                  larger.begin() + static_cast<int64_t>(2 * level));
    }
    num_leaves_ *= 2;
    rooms_ = std::move(larger);
  }

  int32_t capacity_;
  size_t num_leaves_ = 1;       // a power of two
  std::vector<int32_t> rooms_;  // heap order: node i has the children 2 i and 2 i + 1
};

/// Finds the first pack with room for each document; a step of visit_documents.
template <class Id>
struct FirstFitStep {
  RoomTree* rooms;
  std::vector<Id>* counts;  ///< documents of each pack
  Id* pack_of;              ///< of each document of the stream that is not left out
  int64_t num_documents = 0;

  void operator()(uint64_t entry) {
    const int32_t slots = static_cast<int32_t>(StreamEntry::slots(entry));
    if (slots == 0) return;
    const int64_t pack = rooms->take(slots);
    if (pack == static_cast<int64_t>(counts->size())) counts->push_back(0);
    ++(*counts)[static_cast<size_t>(pack)];
    pack_of[num_documents++] = static_cast<Id>(pack);
  }
};

/// Puts the documents where they were found to fit, in the order of the stream.
template <class Id>
struct PlaceStep {
  const Id* pack_of;
  Id* taken;  ///< documents so far of each pack
  const int64_t* offsets;
  Id* documents;
  int64_t num_documents = 0;

  void operator()(uint64_t entry) {
    if (StreamEntry::slots(entry) == 0) return;
    const Id pack = pack_of[num_documents++];
    documents[offsets[pack] + taken[pack]++] = static_cast<Id>(StreamEntry::document(entry));
  }
};

}  // namespace

// The stream is gone through twice, which takes less memory than keeping it.
template <class Id>
Packs<Id> pack_first_fit(const PackInput& input) {
  const int64_t sweeps = input.num_documents() > few_documents ? 4 : 1;
  Buffer<Id> pack_of(input.num_kept, input.arena);
  std::vector<Id> counts;
  {
    RoomTree rooms(input.capacity);
    FirstFitStep<Id> find{&rooms, &counts, pack_of.data()};
    visit_documents(input, find, sweeps);
  }
  const int64_t num_packs = static_cast<int64_t>(counts.size());
  Packs<Id> packs;
  packs.offsets = Buffer<int64_t>(num_packs + 1, input.arena);
  packs.documents = Buffer<Id>(input.num_kept, input.arena);
  packs.offsets[0] = 0;
  for (int64_t p = 0; p < num_packs; ++p) {
    packs.offsets[p + 1] = packs.offsets[p] + std::exchange(counts[static_cast<size_t>(p)], 0);
  }
  PlaceStep<Id> place{pack_of.data(), counts.data(), packs.offsets.data(), packs.documents.data()};
  visit_documents(input, place, sweeps);
  return packs;
}

template Packs<int32_t> pack_first_fit(const PackInput&);
template Packs<int64_t> pack_first_fit(const PackInput&);

}  // namespace dsm
