#pragma once

#include <cstdint>
#include <span>

#include "core/pack_index.h"

// The strategies behind build_packs, which has checked the plan before it calls one of them.

namespace dsm {

/// A checked plan as the strategies see it: slots in the place of tokens, policies applied.
struct PackInput {
  std::span<const int32_t> slots;  ///< [documents]; 0: left out; at most capacity, but concat_split
  int64_t num_kept = 0;
  int64_t total_slots = 0;
  int32_t longest = 0;
  int64_t capacity = 0;
  PackCost cost{};
  uint64_t key = 0;
  int threads = 1;
  Arena* arena = nullptr;

  /// An upper bound on the packs of any strategy that opens one only for a document that the one
  /// before cannot hold: two neighbours hold more than one capacity together.
  int64_t max_packs() const {
    return total_slots == 0 ? 0 : std::min(num_kept, 2 * total_slots / capacity + 1);
  }
};

template <class Id>
Packs<Id> pack_random(const PackInput& input);

template <class Id>
Packs<Id> pack_concat_split(const PackInput& input);

template <class Id>
Packs<Id> pack_first_fit(const PackInput& input);

template <class Id>
Packs<Id> pack_best_fit(const PackInput& input);

template <class Id>
Packs<Id> pack_balanced(const PackInput& input);

}  // namespace dsm
