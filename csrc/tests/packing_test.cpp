// Checks of packing that Python cannot reach, or that sanitizers should see: 64-bit document ids,
// threads, and the shuffle in its several ways.

#include <cstdint>
#include <cstdio>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "core/bucket_shuffle.h"
#include "core/pack_index.h"
#include "core/random.h"
#include "core/shuffle.h"
#include "core/stream_packers.h"
#include "tests/check.h"

namespace {

constexpr auto strategies = {dsm::PackStrategy::random, dsm::PackStrategy::best_fit,
                             dsm::PackStrategy::concat_split, dsm::PackStrategy::first_fit_shuffle,
                             dsm::PackStrategy::balanced};

std::vector<int32_t> random_lengths(int64_t n, uint64_t bound) {
  std::vector<int32_t> lengths(static_cast<size_t>(n));
  dsm::RandomStream random(1);
  for (int32_t& length : lengths) length = static_cast<int32_t>(random.below(bound)) + 1;
  return lengths;
}

template <class Left, class Right>
bool are_equal(const Left& left, const Right& right) {
  if (left.size() != right.size()) return false;
  for (int64_t i = 0; i < left.size(); ++i) {
    if (left[i] != right[i]) return false;
  }
  return true;
}

template <class Left, class Right>
void check_equal(const dsm::Packs<Left>& left, const dsm::Packs<Right>& right) {
  CHECK(are_equal(left.offsets, right.offsets));
  CHECK(are_equal(left.documents, right.documents));
  CHECK(are_equal(left.begins, right.begins));
}

void ids_of_64_bits_give_the_packs_of_32_bits() {
  const std::vector<int32_t> lengths = random_lengths(50'000, 300);
  for (const auto strategy : strategies) {
    const dsm::PackPlan plan{
        .lengths = lengths, .capacity = 1000, .strategy = strategy, .seed = 7, .cost = {1, 1}};
    check_equal(dsm::build_packs<int32_t>(plan), dsm::build_packs<int64_t>(plan));
  }
}

void threads_change_nothing() {
  const std::vector<int32_t> lengths = random_lengths(2'000'000, 300);
  const auto arena = std::make_shared<dsm::Arena>();
  for (const auto strategy : strategies) {
    dsm::PackPlan plan{
        .lengths = lengths, .capacity = 1000, .strategy = strategy, .seed = 7, .cost = {1, 1}};
    const auto alone = dsm::build_packs<int32_t>(plan);
    plan.arena = arena.get();
    for (const int threads : {2, 4}) {
      plan.threads = threads;
      check_equal(alone, dsm::build_packs<int32_t>(plan));
    }
  }
}

/// What a BucketShuffle hands over.
struct Collect {
  std::vector<uint64_t>* entries;
  void operator()(uint64_t entry) { entries->push_back(entry); }
};

std::vector<uint64_t> shuffled(int64_t n, int threads, int64_t max_entries) {
  std::vector<uint64_t> entries;
  Collect step{&entries};
  dsm::BucketShuffle(n, 42).visit([](int64_t i) { return 2 * static_cast<uint64_t>(i); }, threads,
                                  max_entries, nullptr, step);
  return entries;
}

void the_shuffle_is_the_same_counted_or_not_and_in_any_number_of_sweeps() {
  for (const int64_t n : {0, 1, 2, 3, 4, 5, 4095, 4097, 8193, 100'003}) {
    const std::vector<uint64_t> whole = shuffled(n, 1, n);
    std::vector<bool> seen(static_cast<size_t>(n), false);
    for (const uint64_t entry : whole) {
      CHECK(entry % 2 == 0 && entry / 2 < static_cast<uint64_t>(n));
      CHECK(!seen[static_cast<size_t>(entry / 2)]);
      seen[static_cast<size_t>(entry / 2)] = true;
    }
    CHECK(static_cast<int64_t>(whole.size()) == n);
    CHECK(shuffled(n, 1, n / 2) == whole);
    CHECK(shuffled(n, 1, 1) == whole);
    CHECK(shuffled(n, 3, n) == whole);
    CHECK(shuffled(n, 2, n / 3) == whole);
  }
}

/// One draw at a time, by the words of the stream and the rule in the header.
void shuffle_slowly(std::vector<uint32_t>& items, uint64_t key) {
  dsm::RandomStream stream(key);
  dsm::RandomStream far(dsm::derive_key({key, 1}));
  uint64_t word = 0;
  int64_t halves = 0;
  for (uint64_t left = items.size(); left > 1; --left) {
    uint64_t other;
    if (left == 2 && items.size() % 2 == 0) {  // batches are even: two items are left over
      other = far.below(left);
    } else {
      if (halves % 2 == 0) word = stream.next();
      const uint64_t half = halves % 2 == 0 ? word & 0xFFFFFFFFu : word >> 32;
      ++halves;
      other = half * left >> 32;
      if (static_cast<uint32_t>(half * left) < (uint64_t{1} << 32) % left) {
        other = dsm::RandomStream(dsm::derive_key({key, 2, left})).below(left);
      }
    }
    std::swap(items[left - 1], items[other]);
  }
}

void many_draws_at_once_are_those_drawn_one_by_one() {
  for (const size_t n : {0u, 1u, 2u, 3u, 4u, 1025u, 3'000'000u}) {  // the last rejects a thousand
    std::vector<uint32_t> fast(n);
    std::iota(fast.begin(), fast.end(), 0u);
    std::vector<uint32_t> slow = fast;
    dsm::shuffle(fast.data(), static_cast<int64_t>(n), 9);
    shuffle_slowly(slow, 9);
    CHECK(fast == slow);
  }
}

void a_shuffle_beside_steps_is_the_shuffle_and_all_the_steps() {
  std::vector<uint64_t> ready(5000);
  std::iota(ready.begin(), ready.end(), uint64_t{7});
  for (const int64_t n : {0, 1, 100, 4999, 5001, 9000}) {
    std::vector<uint64_t> items(static_cast<size_t>(n));
    std::iota(items.begin(), items.end(), uint64_t{0});
    std::vector<uint64_t> expected = items;
    std::vector<uint64_t> stepped;
    Collect step{&stepped};
    dsm::shuffle_while(items.data(), n, 3, ready.data(), static_cast<int64_t>(ready.size()), step);
    dsm::shuffle(expected.data(), n, 3);
    CHECK(items == expected);
    CHECK(stepped == ready);
  }
}

void long_documents_are_cut_as_short_ones_are() {
  constexpr size_t n = 5000;
  const std::vector<int32_t> lengths = random_lengths(n, 64);
  std::vector<int64_t> offsets[2];
  std::vector<int32_t> documents[2], begins[2];
  for (int i = 0; i < 2; ++i) {
    offsets[i].resize(n * 2 + 1);
    documents[i].resize(n * 2 + 1);
    begins[i].resize(n * 2 + 1);
  }
  dsm::CutStep<int32_t> brief(64, offsets[0].data(), documents[0].data(), begins[0].data());
  dsm::LongCutStep<int32_t> any(64, offsets[1].data(), documents[1].data(), begins[1].data());
  for (size_t i = 0; i < n; ++i) {
    const uint64_t entry = dsm::StreamEntry::pack(static_cast<int64_t>(i), lengths[i]);
    brief(entry);
    any(entry);
    CHECK(brief.num_packs() == any.num_packs() && brief.num_pieces() == any.num_pieces());
  }
  for (int64_t p = 0; p < brief.num_packs(); ++p) {
    CHECK(offsets[0][static_cast<size_t>(p)] == offsets[1][static_cast<size_t>(p)]);
    CHECK(begins[0][static_cast<size_t>(p)] == begins[1][static_cast<size_t>(p)]);
  }
  for (int64_t i = 0; i < brief.num_pieces(); ++i) {
    CHECK(documents[0][static_cast<size_t>(i)] == documents[1][static_cast<size_t>(i)]);
  }
}

void stream_entries_hold_the_largest_document_and_length() {
  const int64_t document = dsm::StreamEntry::max_documents - 1;
  const int32_t slots = std::numeric_limits<int32_t>::max();
  const uint64_t entry = dsm::StreamEntry::pack(document, slots);
  CHECK(dsm::StreamEntry::document(entry) == document);
  CHECK(dsm::StreamEntry::slots(entry) == slots);
}

}  // namespace

int main() {
  ids_of_64_bits_give_the_packs_of_32_bits();
  threads_change_nothing();
  the_shuffle_is_the_same_counted_or_not_and_in_any_number_of_sweeps();
  many_draws_at_once_are_those_drawn_one_by_one();
  a_shuffle_beside_steps_is_the_shuffle_and_all_the_steps();
  long_documents_are_cut_as_short_ones_are();
  stream_entries_hold_the_largest_document_and_length();
  std::puts("packing_test: all hold");
  return 0;
}
