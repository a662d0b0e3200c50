#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "core/random.h"
#include "core/vector_loops.h"

namespace dsm {

/// The swaps of a Fisher-Yates shuffle, some at a time: swap i of a batch exchanges the items
/// left - 1 - i and other(i). The draws are Lemire's multiply and reject on 32-bit halves of the
/// words of RandomStream(key); a rejected one is drawn again from a stream of its own.
class ShuffleSwaps {
 public:
  ShuffleSwaps(int64_t n, uint64_t key) : left_(n), key_(key), far_(derive_key({key, 1})) {}

  /// Draws the next batch; false where the shuffle is done.
  bool draw() {
    left_ -= count_;
    if (left_ <= 1) return false;
    if (left_ > largest_bound || left_ == 2) {
      count_ = 1;
      other_[0] = far_.below(static_cast<uint64_t>(left_));
      return true;
    }
    count_ = std::min(draws_at_a_time, (left_ - 1) / 2 * 2);
    fill_random_words(key_, next_word_, words_, count_ / 2);
    next_word_ += static_cast<uint64_t>(count_ / 2);
    if (fill_descending_draws(words_, static_cast<uint64_t>(left_), other_, count_)) {
      draw_rejected_again();
    }
    return true;
  }

  int64_t left() const { return left_; }
  int64_t count() const { return count_; }
  uint32_t other(int64_t i) const { return other_[i]; }

 private:
  static constexpr int64_t draws_at_a_time = 1024;
  static constexpr int64_t largest_bound = int64_t{1} << 31;

  void draw_rejected_again() {
    for (int64_t i = 0; i < count_; ++i) {
      const uint64_t bound = static_cast<uint64_t>(left_ - i);
      const uint64_t half = i % 2 == 0 ? words_[i / 2] & 0xFFFFFFFFu : words_[i / 2] >> 32;
      if (static_cast<uint32_t>(half * bound) < (uint64_t{1} << 32) % bound) {
        RandomStream again(derive_key({key_, 2, bound}));
        other_[i] = static_cast<uint32_t>(again.below(bound));
      }
    }
  }

  int64_t left_;
  int64_t count_ = 0;
  uint64_t key_;
  RandomStream far_;
  uint64_t next_word_ = 0;
  uint64_t words_[draws_at_a_time / 2];
  uint32_t other_[draws_at_a_time];
};

/// Fisher-Yates in place.
template <class Item>
void shuffle(Item* items, int64_t n, uint64_t key) {
  ShuffleSwaps swaps(n, key);
  while (swaps.draw()) {
    Item* last = items + swaps.left() - 1;
    for (int64_t i = 0; i < swaps.count(); ++i) std::swap(last[-i], items[swaps.other(i)]);
  }
}

/// Shuffles `items`, and meanwhile calls step(ready[i]) for all i in order. The two have nothing to
/// do with each other: a step waits for the one before, the swaps for memory, and a processor does
/// both in the time of the slower. `step` is copied in and out, to be kept in registers.
template <class Item, class Step>
void shuffle_while(Item* items, int64_t n, uint64_t key, const Item* ready, int64_t num_ready,
                   Step& step) {
  ShuffleSwaps swaps(n, key);
  int64_t done = 0;
  while (swaps.draw()) {
    Item* last = items + swaps.left() - 1;
    const int64_t count = swaps.count();
    const int64_t both = std::min(count, num_ready - done);
    Step local = step;
    for (int64_t i = 0; i < both; ++i) {
      std::swap(last[-i], items[swaps.other(i)]);
      local(ready[done + i]);
    }
    step = local;
    for (int64_t i = both; i < count; ++i) std::swap(last[-i], items[swaps.other(i)]);
    done += both;
  }
  Step local = step;
  for (; done < num_ready; ++done) local(ready[done]);
  step = local;
}

}  // namespace dsm
