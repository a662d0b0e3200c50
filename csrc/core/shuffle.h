#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "core/random.h"

namespace dsm {

/// Fisher-Yates in place.
template <class Item>
void shuffle(std::span<Item> items, RandomStream random) {
  for (uint64_t i = items.size(); i > 1; --i) {
    std::swap(items[i - 1], items[random.below(i)]);
  }
}

/// Writes make_item(0) .. make_item(n - 1) to `out` in uniformly random order.
///
/// Rao-Sandelius: each item goes to a random bucket small enough for the cache, each bucket is
/// shuffled by itself. Item i's bucket is a function of (key, i) and a bucket's stream one of
/// (key, bucket), so the result does not depend on how the work is divided.
template <class Item, class MakeItem>
void shuffle_into(std::span<Item> out, uint64_t key, MakeItem make_item) {
  constexpr int64_t bucket_items = 16384;
  constexpr int max_bucket_bits = 16;  // four bucket numbers come from one 64-bit word
  const int64_t n = static_cast<int64_t>(out.size());
  int bits = 0;
  while (bits < max_bucket_bits && (n >> bits) > bucket_items) ++bits;
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  const uint64_t bucket_key = derive_key({key, 0});
  const auto word_of = [&](int64_t i) {
    return mix64(bucket_key + static_cast<uint64_t>(i >> 2) * golden_gamma);
  };

  std::vector<int64_t> cursor(mask + 2, 0);
  for (int64_t i = 0; i < n; i += 4) {
    uint64_t word = word_of(i);
    for (int64_t j = i; j < n && j < i + 4; ++j, word >>= 16) ++cursor[(word & mask) + 1];
  }
  for (uint64_t b = 0; b <= mask; ++b) cursor[b + 1] += cursor[b];
  const std::vector<int64_t> start = cursor;
  for (int64_t i = 0; i < n; i += 4) {
    uint64_t word = word_of(i);
    for (int64_t j = i; j < n && j < i + 4; ++j, word >>= 16) {
      out[static_cast<size_t>(cursor[word & mask]++)] = make_item(j);
    }
  }
  for (uint64_t b = 0; b <= mask; ++b) {
    shuffle(
        out.subspan(static_cast<size_t>(start[b]), static_cast<size_t>(start[b + 1] - start[b])),
        RandomStream(derive_key({key, 1, b})));
  }
}

}  // namespace dsm
