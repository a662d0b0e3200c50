#pragma once

#include <cstdint>
#include <span>

#include "core/buffer.h"

namespace dsm {

enum class PackStrategy : uint32_t {
  random = 0,    ///< a seeded permutation laid end to end; a pack closes when the next does not fit
  best_fit = 1,  ///< exact best-fit-decreasing; packs, and documents of one length, in random order
};

/// The largest capacity, in tokens: best_fit keeps some words for each residual capacity.
inline constexpr int64_t max_pack_capacity = int64_t{1} << 24;

struct PackPlan {
  std::span<const int32_t> lengths;  ///< tokens of each document, 1 to capacity
  int64_t capacity = 0;              ///< tokens of a pack
  PackStrategy strategy = PackStrategy::random;
  uint64_t seed = 0;
  uint64_t epoch = 0;
};

/// Which documents stand in which pack: pack p holds documents[offsets[p] .. offsets[p + 1]).
template <class Id>
struct Packs {
  Buffer<int64_t> offsets;
  Buffer<Id> documents;
};

/// A pure function of the plan: the same bytes on every machine. Every document is in exactly one
/// pack, whole. Id is int32_t (up to 2^31 - 1 documents) or int64_t. Throws InputError where the
/// capacity is out of range or a document is empty or longer than the capacity.
template <class Id>
Packs<Id> build_packs(const PackPlan& plan);

extern template Packs<int32_t> build_packs(const PackPlan&);
extern template Packs<int64_t> build_packs(const PackPlan&);

}  // namespace dsm
