#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "core/pack_index.h"

// The strategies behind build_packs, which has checked the plan before it calls one of them.

namespace dsm {

/// Slots of documents that take as many as they have tokens.
struct PlainSlots {
  const int32_t* lengths;
  int32_t operator()(int64_t document) const { return lengths[document]; }
};

/// Slots of documents under an alignment and an overlong policy; computed where they are asked for,
/// since an array of them would be half of the memory that packing takes.
struct PolicySlots {
  const int32_t* lengths;
  uint32_t alignment;
  int32_t longest;   ///< tokens, above which a document takes `overlong` slots
  int32_t overlong;  ///< 0: it is left out
  int32_t operator()(int64_t document) const {
    const int32_t length = lengths[document];
    if (length > longest) return overlong;
    return static_cast<int32_t>((static_cast<uint32_t>(length) + alignment - 1) / alignment *
                                alignment);
  }
};

/// A checked plan as the strategies see it: slots in the place of tokens, policies applied.
struct PackInput {
  std::span<const int32_t> lengths;  ///< [documents]
  PolicySlots policy{};
  bool is_plain = true;  ///< slots are tokens
  int64_t num_kept = 0;
  int64_t total_slots = 0;
  int32_t longest = 0;
  int64_t capacity = 0;
  PackCost cost{};
  uint64_t key = 0;
  int threads = 1;
  Arena* arena = nullptr;

  int64_t num_documents() const { return static_cast<int64_t>(lengths.size()); }

  /// Calls work(slots), where slots(document) is what a document takes.
  template <class Work>
  auto with_slots(Work work) const {
    return is_plain ? work(PlainSlots{lengths.data()}) : work(policy);
  }

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
