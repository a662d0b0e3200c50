#pragma once

#include <cstdint>

namespace dsm {

/// The order in which packs are trained on, as a function of the position alone: position p is in
/// epoch p / num_packs, and every epoch is a permutation of its own. O(1) time, no state, so any
/// rank of any layout can ask for any step.
class PackOrder {
 public:
  /// Throws InputError where num_packs is below 1.
  PackOrder(int64_t num_packs, uint64_t seed);

  /// The pack at a position >= 0; throws InputError below.
  int64_t pack_at(int64_t position) const;

  int64_t num_packs() const { return num_packs_; }
  uint64_t seed() const { return seed_; }

 private:
  int64_t num_packs_;
  uint64_t seed_;
  int half_bits_;
};

}  // namespace dsm
