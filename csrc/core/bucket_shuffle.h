#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "core/buffer.h"
#include "core/parallel.h"
#include "core/random.h"
#include "core/shuffle.h"
#include "core/vector_loops.h"

namespace dsm {

/// The numbers 0 .. n - 1 in uniformly random order (Rao, Sandelius): each goes to a random bucket
/// small enough for the cache, each bucket is shuffled by itself.
///
/// A number's bucket is a function of (key, number), a bucket's random stream one of (key, bucket),
/// and buckets are filled in the order of the numbers: the result depends neither on threads nor on
/// how many buckets are in memory at a time.
class BucketShuffle {
 public:
  BucketShuffle(int64_t n, uint64_t key)
      : n_(n), bucket_key_(derive_key({key, 0})), stream_key_(derive_key({key, 1})) {
    while (bits_ < max_bits && (n >> bits_) > numbers_per_bucket) ++bits_;
  }

  /// Calls step(entry) for all numbers in the order, on the caller's thread; entry_of(number) makes
  /// the 64-bit entry of a number. `step` is small: it is copied in and out around inner loops. At
  /// most `max_entries` entries, or one bucket where that is more, are held at a time: the numbers
  /// are gone through again for every so many.
  template <class EntryOf, class Step>
  void visit(EntryOf entry_of, int threads, int64_t max_entries, Arena* arena, Step& step) const {
    if (threads == 1 && n_ <= uncounted_numbers && n_ <= max_entries &&
        visit_uncounted(entry_of, arena, step)) {
      return;
    }
    const Counts counts(*this, threads);
    for (int64_t first = 0; first < num_buckets();) {
      int64_t last = first + 1;
      int64_t entries = counts.bucket_size(first);
      while (last < num_buckets() && entries + counts.bucket_size(last) <= max_entries) {
        entries += counts.bucket_size(last++);
      }
      visit_range(entry_of, counts, first, last, Buffer<uint64_t>(entries, arena), step);
      first = last;
    }
  }

 private:
  static constexpr int64_t numbers_per_bucket = 4096;
  static constexpr int max_bits = 16;  // of the four bucket numbers in one 64-bit word
  static constexpr int64_t numbers_per_word = 64 / max_bits;
  static constexpr int64_t uncounted_numbers = int64_t{1} << 22;
  static constexpr int64_t words_at_a_time = 512;

  int64_t num_buckets() const { return int64_t{1} << bits_; }

  uint64_t key_of(int64_t bucket) const {
    return derive_key({stream_key_, static_cast<uint64_t>(bucket)});
  }

  int64_t num_words() const { return (n_ + numbers_per_word - 1) / numbers_per_word; }

  /// Calls put(number, bucket) in order for the numbers whose buckets the words [first, last) say.
  template <class Put>
  void for_each(int64_t first_word, int64_t last_word, Put put) const {
    const uint64_t mask = (uint64_t{1} << bits_) - 1;
    uint64_t words[words_at_a_time];
    uint16_t quarters[words_at_a_time * numbers_per_word];  // low quarter first: little-endian
    while (first_word < last_word) {
      const int64_t count = std::min(words_at_a_time, last_word - first_word);
      fill_random_words(bucket_key_, static_cast<uint64_t>(first_word), words, count);
      const int64_t first = first_word * numbers_per_word;
      const int64_t numbers = std::min(count * numbers_per_word, n_ - first);
      std::memcpy(quarters, words, sizeof(quarters));
      for (int64_t i = 0; i < numbers; ++i) put(first + i, quarters[i] & mask);
      first_word += count;
    }
  }

  /// As above for one of `parts` parts of the numbers.
  template <class Put>
  void for_each_of_part(int64_t parts, int64_t part, Put put) const {
    for_each(part_begin(num_words(), parts, part), part_begin(num_words(), parts, part + 1), put);
  }

  /// How many numbers of each part go to each bucket.
  class Counts {
   public:
    Counts(const BucketShuffle& shuffle, int threads)
        : parts_(threads),
          num_buckets_(shuffle.num_buckets()),
          counts_(static_cast<size_t>(parts_ * num_buckets_), 0) {
      for_each_part(threads, parts_, [&](int64_t part) {
        int64_t* counts = counts_.data() + part * num_buckets_;
        shuffle.for_each_of_part(parts_, part, [&](int64_t, uint64_t bucket) { ++counts[bucket]; });
      });
    }

    int64_t parts() const { return parts_; }
    int64_t at(int64_t part, int64_t bucket) const {
      return counts_[static_cast<size_t>(part * num_buckets_ + bucket)];
    }
    int64_t bucket_size(int64_t bucket) const {
      int64_t size = 0;
      for (int64_t part = 0; part < parts_; ++part) size += at(part, bucket);
      return size;
    }

   private:
    int64_t parts_;
    int64_t num_buckets_;
    std::vector<int64_t> counts_;
  };

  /// Fills, shuffles and visits the buckets [first, last).
  template <class EntryOf, class Step>
  void visit_range(EntryOf entry_of, const Counts& counts, int64_t first, int64_t last,
                   Buffer<uint64_t> entries, Step& step) const {
    const int64_t range = last - first;
    const int64_t parts = counts.parts();
    std::vector<int64_t> cursor(static_cast<size_t>(parts * range));
    std::vector<int64_t> begin(static_cast<size_t>(range) + 1);
    int64_t position = 0;
    for (int64_t b = 0; b < range; ++b) {
      begin[static_cast<size_t>(b)] = position;
      for (int64_t part = 0; part < parts; ++part) {
        cursor[static_cast<size_t>(part * range + b)] = position;
        position += counts.at(part, first + b);
      }
    }
    begin[static_cast<size_t>(range)] = position;
    const int threads = static_cast<int>(parts);
    const bool is_whole = range == num_buckets();
    for_each_part(threads, parts, [&](int64_t part) {
      int64_t* next = cursor.data() + part * range;
      for_each_of_part(parts, part, [&](int64_t number, uint64_t bucket) {
        const uint64_t b = bucket - static_cast<uint64_t>(first);
        if (is_whole || b < static_cast<uint64_t>(range)) entries[next[b]++] = entry_of(number);
      });
    });
    for_each_part(threads, range, [&](int64_t b) {
      const int64_t from = begin[static_cast<size_t>(b)];
      shuffle(entries.data() + from, begin[static_cast<size_t>(b) + 1] - from, key_of(first + b));
    });
    Step local = step;
    for (const uint64_t entry : entries.span()) local(entry);
    step = local;
  }

  /// Fills buckets with room to spare, so that none need be counted first, and visits each while
  /// the next is shuffled. False, with nothing visited, where one would overflow.
  template <class EntryOf, class Step>
  bool visit_uncounted(EntryOf entry_of, Arena* arena, Step& step) const {
    const double mean = static_cast<double>(n_) / static_cast<double>(num_buckets());
    const int64_t room = std::min(n_, static_cast<int64_t>(mean + 8 * std::sqrt(mean)) + 16);
    const int64_t stride = room + words_at_a_time * numbers_per_word;
    Buffer<uint64_t> entries(num_buckets() * stride, arena);
    std::vector<uint64_t*> next(static_cast<size_t>(num_buckets()));
    for (int64_t b = 0; b < num_buckets(); ++b) {
      next[static_cast<size_t>(b)] = entries.data() + b * stride;
    }
    uint64_t** const next_of = next.data();
    const int64_t words = num_words();
    for (int64_t word = 0; word < words; word += words_at_a_time) {
      for_each(word, std::min(word + words_at_a_time, words),
               [&](int64_t number, uint64_t bucket) { *next_of[bucket]++ = entry_of(number); });
      bool overflows = false;
      for (int64_t b = 0; b < num_buckets(); ++b) {
        overflows |= next_of[b] - (entries.data() + b * stride) > room;
      }
      if (overflows) return false;
    }
    const uint64_t* ready = nullptr;
    int64_t num_ready = 0;
    for (int64_t b = 0; b < num_buckets(); ++b) {
      uint64_t* first = entries.data() + b * stride;
      const int64_t count = next_of[b] - first;
      shuffle_while(first, count, key_of(b), ready, num_ready, step);
      ready = first;
      num_ready = count;
    }
    Step local = step;
    for (int64_t i = 0; i < num_ready; ++i) local(ready[i]);
    step = local;
    return true;
  }

  int64_t n_;
  uint64_t bucket_key_;
  uint64_t stream_key_;
  int bits_ = 0;
};

}  // namespace dsm
