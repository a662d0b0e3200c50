#include <vector>

#include "core/pack_strategies.h"
#include "core/shuffle.h"

namespace dsm {
namespace {

template <class Id>
struct Entry {
  Id document;
  int32_t length;
};

}  // namespace

// The lengths travel with the ids through the shuffle, so that the pass that closes the packs
// reads memory in order.
template <class Id>
Packs<Id> pack_random(const PackPlan& plan, uint64_t key) {
  const int64_t n = static_cast<int64_t>(plan.lengths.size());
  Buffer<Entry<Id>> entries(n);
  shuffle_into(entries.span(), key, [&](int64_t i) {
    return Entry<Id>{static_cast<Id>(i), plan.lengths[static_cast<size_t>(i)]};
  });

  Packs<Id> packs;
  packs.documents = Buffer<Id>(n);
  std::vector<int64_t> offsets{0};
  int64_t room = plan.capacity;
  for (int64_t i = 0; i < n; ++i) {
    const Entry<Id> entry = entries[i];
    if (entry.length > room) {
      offsets.push_back(i);
      room = plan.capacity;
    }
    room -= entry.length;
    packs.documents[i] = entry.document;
  }
  if (n > 0) offsets.push_back(n);
  packs.offsets = Buffer<int64_t>(static_cast<int64_t>(offsets.size()));
  std::copy(offsets.begin(), offsets.end(), packs.offsets.data());
  return packs;
}

template Packs<int32_t> pack_random(const PackPlan&, uint64_t);
template Packs<int64_t> pack_random(const PackPlan&, uint64_t);

}  // namespace dsm
