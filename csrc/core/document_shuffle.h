#pragma once

#include <cstdint>

#include "core/bucket_shuffle.h"
#include "core/pack_strategies.h"

namespace dsm {

/// A document of the shuffled stream in one word, so that the pass that fills packs reads memory in
/// order: its number above, the slots it takes in the low 31 bits.
struct StreamEntry {
  static constexpr int slot_bits = 31;
  static constexpr int64_t max_documents = int64_t{1} << (64 - slot_bits);

  static uint64_t pack(int64_t document, int32_t slots) {
    return static_cast<uint64_t>(document) << slot_bits | static_cast<uint32_t>(slots);
  }
  static int64_t document(uint64_t entry) { return static_cast<int64_t>(entry >> slot_bits); }
  static int64_t slots(uint64_t entry) {
    return static_cast<int64_t>(entry & ((uint64_t{1} << slot_bits) - 1));
  }
};

/// Calls step(StreamEntry word) for all documents in seeded random order, those left out too; see
/// BucketShuffle::visit. The entries of 1 / `sweeps` of the documents are held at a time.
template <class Step>
void visit_documents(const PackInput& input, Step& step, int64_t sweeps = 1) {
  const int64_t n = input.num_documents();
  input.with_slots([&](auto slots) {
    const auto entry_of = [slots](int64_t document) {
      return StreamEntry::pack(document, slots(document));
    };
    BucketShuffle(n, input.key).visit(entry_of, input.threads, n / sweeps, input.arena, step);
  });
}

}  // namespace dsm
