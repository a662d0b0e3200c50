#include <algorithm>
#include <bit>
#include <vector>

#include "core/document_shuffle.h"
#include "core/pack_strategies.h"

namespace dsm {
namespace {

constexpr int64_t few_documents = int64_t{1} << 22;

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

/// Puts each document into the first pack with room; a step of visit_documents.
template <class Id>
struct FirstFitStep {
  RoomTree* rooms;
  std::vector<Id>* counts;  ///< documents of each pack
  Id* documents;            ///< in the order of the stream
  Id* pack_of;              ///< of each of them
  int64_t num_documents = 0;

  void operator()(uint64_t entry) {
    const int32_t slots = static_cast<int32_t>(StreamEntry::slots(entry));
    if (slots == 0) return;
    const int64_t pack = rooms->take(slots);
    if (pack == static_cast<int64_t>(counts->size())) counts->push_back(0);
    ++(*counts)[static_cast<size_t>(pack)];
    documents[num_documents] = static_cast<Id>(StreamEntry::document(entry));
    pack_of[num_documents++] = static_cast<Id>(pack);
  }
};

}  // namespace

template <class Id>
Packs<Id> pack_first_fit(const PackInput& input) {
  Buffer<Id> documents(input.num_kept, input.arena);
  Buffer<Id> pack_of(input.num_kept, input.arena);
  std::vector<Id> counts;
  {
    RoomTree rooms(input.capacity);
    FirstFitStep<Id> step{&rooms, &counts, documents.data(), pack_of.data()};
    // `documents` and `pack_of` take 8 bytes a document already; a few million are no matter.
    const int64_t sweeps = input.num_kept > few_documents ? 8 : 1;
    visit_documents(input, step, sweeps);
  }
  const int64_t num_packs = static_cast<int64_t>(counts.size());
  Packs<Id> packs;
  packs.offsets = Buffer<int64_t>(num_packs + 1, input.arena);
  packs.documents = Buffer<Id>(input.num_kept, input.arena);
  packs.offsets[0] = 0;
  for (int64_t p = 0; p < num_packs; ++p) {
    packs.offsets[p + 1] = packs.offsets[p] + counts[static_cast<size_t>(p)];
  }
  // From the last document to the first, counting down, so that packs keep the stream's order.
  for (int64_t i = input.num_kept - 1; i >= 0; --i) {
    const int64_t pack = pack_of[i];
    packs.documents[packs.offsets[pack] + --counts[static_cast<size_t>(pack)]] = documents[i];
  }
  return packs;
}

template Packs<int32_t> pack_first_fit(const PackInput&);
template Packs<int64_t> pack_first_fit(const PackInput&);

}  // namespace dsm
