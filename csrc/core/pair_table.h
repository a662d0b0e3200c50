#pragma once

#include <bit>
#include <cstdint>
#include <utility>
#include <vector>

namespace dsm {

/// A hash table from pairs of 32-bit numbers to numbers >= 0: filled once, then read by any number
/// of threads. At most half full, so that a miss ends after a probe or two.
class PairTable {
 public:
  static constexpr int32_t absent = -1;

  PairTable() : slots_(min_slots) {}

  int32_t find(uint32_t left, uint32_t right) const {
    const uint64_t key = joined(left, right);
    for (uint64_t i = first_slot(key);; ++i) {
      const Slot& slot = slots_[i & (slots_.size() - 1)];
      if (slot.value == absent || slot.key == key) return slot.value;
    }
  }

  /// Keeps the value that stands there already, and says whether there was none.
  bool insert(uint32_t left, uint32_t right, int32_t value) {
    if (2 * (size_ + 1) > slots_.size()) grow();
    return place({joined(left, right), value});
  }

 private:
  static constexpr size_t min_slots = 16;

  struct Slot {
    uint64_t key = 0;
    int32_t value = absent;
  };

  static uint64_t joined(uint32_t left, uint32_t right) { return uint64_t{left} << 32 | right; }

  uint64_t first_slot(uint64_t key) const {
    key *= 0x9E3779B97F4A7C15u;
    key = (key ^ key >> 32) * 0xD6E8FEB86659FD93u;
    return key >> (64 - std::countr_zero(slots_.size()));
  }

  bool place(Slot added) {
    for (uint64_t i = first_slot(added.key);; ++i) {
      Slot& slot = slots_[i & (slots_.size() - 1)];
      if (slot.value == absent) {
        slot = added;
        ++size_;
        return true;
      }
      if (slot.key == added.key) return false;
    }
  }

  void grow() {
    std::vector<Slot> old(2 * slots_.size());
    std::swap(old, slots_);
    size_ = 0;
    for (const Slot& slot : old) {
      if (slot.value != absent) place(slot);
    }
  }

  std::vector<Slot> slots_;  // a power of two
  size_t size_ = 0;
};

}  // namespace dsm
