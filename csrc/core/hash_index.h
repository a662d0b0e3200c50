#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace dsm {

/// From 64-bit hashes to numbers below 2^32 - 1: open addressing, linear probing. Keys are taken as
/// they are and must be hashes already.
class HashIndex {
 public:
  static constexpr uint32_t none = UINT32_MAX;

  /// The number under the key, `none` where there is none.
  uint32_t find(uint64_t key) const { return slots_[slot_of(key)].value; }

  /// Puts the number under a key that has none yet; else leaves things as they are.
  void insert(uint64_t key, uint32_t value) {
    if (2 * (num_keys_ + 1) > slots_.size()) grow();
    Slot& slot = slots_[slot_of(key)];
    if (slot.value != none) return;
    slot = {key, value};
    ++num_keys_;
  }

  void prefetch(uint64_t key) const { __builtin_prefetch(&slots_[key & (slots_.size() - 1)]); }

  size_t size() const { return num_keys_; }

  template <class Visit>
  void for_each_key(Visit visit) const {
    for (const Slot& slot : slots_) {
      if (slot.value != none) visit(slot.key);
    }
  }

 private:
  struct Slot {
    uint64_t key = 0;
    uint32_t value = none;
  };

  size_t slot_of(uint64_t key) const {
    const size_t mask = slots_.size() - 1;
    size_t at = key & mask;
    while (slots_[at].value != none && slots_[at].key != key) at = (at + 1) & mask;
    return at;
  }

  void grow() {
    std::vector<Slot> old(2 * slots_.size());
    old.swap(slots_);
    for (const Slot& slot : old) {
      if (slot.value != none) slots_[slot_of(slot.key)] = slot;
    }
  }

  std::vector<Slot> slots_ = std::vector<Slot>(16);
  size_t num_keys_ = 0;
};

}  // namespace dsm
