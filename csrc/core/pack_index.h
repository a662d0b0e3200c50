#pragma once

#include <cstdint>
#include <span>

#include "core/buffer.h"

namespace dsm {

enum class PackStrategy : uint32_t {
  random = 0,    ///< a seeded permutation laid end to end; a pack closes when the next does not fit
  best_fit = 1,  ///< exact best-fit-decreasing; packs, and documents of one length, in random order
  concat_split = 2,       ///< the same permutation, cut exactly at the capacity
  first_fit_shuffle = 3,  ///< the same permutation, each document into the first pack with room
  balanced = 4,           ///< longest first, each into the pack of least cost that has room
};

/// What becomes of a document longer than the capacity; concat_split cuts it in any case.
enum class OverlongPolicy : uint32_t {
  error = 0,
  drop = 1,      ///< it stands in no pack
  truncate = 2,  ///< its first `capacity` tokens fill a pack
};

/// The largest capacity, in tokens: best_fit keeps some words for each residual capacity.
inline constexpr int64_t max_pack_capacity = int64_t{1} << 24;

/// What a pack costs to train on: token * slots + square * (sum over its documents of slots^2).
struct PackCost {
  uint64_t token = 0;
  uint64_t square = 0;
};

/// Bounds within which the cost of a pack stays below 2^57.
inline constexpr uint64_t max_cost_of_token = uint64_t{1} << 31;
inline constexpr uint64_t max_cost_of_square = 128;

struct PackPlan {
  std::span<const int32_t> lengths;  ///< tokens of each document, at least 1
  int64_t capacity = 0;              ///< slots of a pack, a multiple of the alignment
  PackStrategy strategy = PackStrategy::random;
  uint64_t seed = 0;
  uint64_t epoch = 0;
  int64_t alignment = 1;  ///< a document takes the next multiple of it in slots
  OverlongPolicy overlong = OverlongPolicy::error;
  PackCost cost{};         ///< of `balanced`
  int threads = 1;         ///< changes the time, never the result
  Arena* arena = nullptr;  ///< where scratch and result come from; may be null
};

/// What became of the documents: in = kept + dropped; kept = whole + truncated.
struct PackLedger {
  int64_t documents = 0;
  int64_t tokens = 0;
  int64_t dropped_documents = 0;
  int64_t dropped_tokens = 0;
  int64_t truncated_documents = 0;
  int64_t truncated_tokens = 0;  ///< tokens cut off

  bool operator==(const PackLedger&) const = default;
};

/// Which documents stand in which pack: pack p holds documents[offsets[p] .. offsets[p + 1]). Only
/// concat_split cuts documents: there the first piece of pack p begins at token begins[p] of its
/// document, and the last ends where the pack is full.
template <class Id>
struct Packs {
  Buffer<int64_t> offsets;
  Buffer<Id> documents;
  Buffer<int32_t> begins;  ///< [packs] of concat_split, else empty
  PackLedger ledger;
};

/// A pure function of the plan without its threads and arena: the same bytes on every machine. Id
/// is int32_t (up to 2^31 - 1 documents) or int64_t. Throws InputError where the plan is out of
/// range, a document is empty, or one is longer than the capacity and the policy is `error`.
template <class Id>
Packs<Id> build_packs(const PackPlan& plan);

extern template Packs<int32_t> build_packs(const PackPlan&);
extern template Packs<int64_t> build_packs(const PackPlan&);

/// The slots a document of `length` tokens takes, before any overlong policy.
constexpr int64_t slots_of(int64_t length, int64_t alignment) {
  return (length + alignment - 1) / alignment * alignment;
}

}  // namespace dsm
