// More than 2^31 documents and 2^32 tokens: the shuffled stream and its packs with lengths that are
// computed and packs that are looked at and forgotten, and the plan of best-fit, which needs only
// how many documents there are of each length. `make test-scale` runs it.

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>

#include "core/best_fit_planner.h"
#include "core/bucket_shuffle.h"
#include "core/stream_packers.h"
#include "tests/check.h"

namespace {

constexpr int64_t num_documents = (int64_t{1} << 31) + 3'000'017;
constexpr int64_t capacity = 4096;
constexpr int64_t max_entries = int64_t{1} << 28;  // 2 GiB at a time
constexpr int threads = 2;

/// 16 to 1039 tokens, with now and then one of the whole capacity.
int32_t length_of(int64_t document) {
  const uint64_t word = dsm::mix64(static_cast<uint64_t>(document) * dsm::golden_gamma);
  return word % 509 == 0 ? static_cast<int32_t>(capacity) : static_cast<int32_t>(word >> 54) + 16;
}

/// The last entries of an array that is not kept.
template <class T>
class Window {
 public:
  T& operator[](int64_t i) { return last_[i & mask]; }

 private:
  static constexpr int64_t mask = 4095;
  T last_[mask + 1]{};
};

/// Packs with the engine's own step, and checks each pack and each document once.
struct CheckedNextFit {
  using Step = dsm::NextFitStep<int64_t, Window<int64_t>&, Window<int64_t>&>;

  Step* step;
  std::vector<uint64_t>* seen;  ///< one bit a document
  int64_t tokens_in_pack = 0;
  int64_t num_tokens = 0;

  void operator()(uint64_t entry) {
    const int64_t document = dsm::StreamEntry::document(entry);
    const int64_t tokens = dsm::StreamEntry::slots(entry);
    CHECK(document >= 0 && document < num_documents && tokens == length_of(document));
    uint64_t& word = (*seen)[static_cast<size_t>(document >> 6)];
    const uint64_t bit = uint64_t{1} << (document & 63);
    CHECK((word & bit) == 0);
    word |= bit;

    const int64_t packs_before = step->num_packs();
    (*step)(entry);
    const bool fits = packs_before > 0 && tokens_in_pack + tokens <= capacity;
    CHECK(step->num_packs() == packs_before + !fits);
    tokens_in_pack = fits ? tokens_in_pack + tokens : tokens;
    num_tokens += tokens;
  }
};

void the_stream_of_more_than_32_bits_of_documents_is_packed_whole() {
  Window<int64_t> offsets, documents;
  CheckedNextFit::Step step(capacity, offsets, documents);
  std::vector<uint64_t> seen(static_cast<size_t>(num_documents / 64 + 1), 0);
  CheckedNextFit checked{&step, &seen};
  dsm::BucketShuffle(num_documents, 5)
      .visit([](int64_t document) { return dsm::StreamEntry::pack(document, length_of(document)); },
             threads, max_entries, nullptr, checked);
  CHECK(step.num_pieces() == num_documents);
  CHECK(offsets[step.num_packs() - 1] < num_documents);
  CHECK(checked.num_tokens > int64_t{1} << 32);
  CHECK(step.num_packs() > checked.num_tokens / capacity);
  std::printf("next fit: %lld documents, %lld tokens, %lld packs, %.4f full\n",
              static_cast<long long>(step.num_pieces()), static_cast<long long>(checked.num_tokens),
              static_cast<long long>(step.num_packs()),
              static_cast<double>(checked.num_tokens) / static_cast<double>(capacity) /
                  static_cast<double>(step.num_packs()));
}

void the_plan_of_best_fit_uses_each_sorted_document_once() {
  std::vector<int64_t> counts(static_cast<size_t>(capacity) + 1, 0);
  dsm::RandomStream random(3);
  int64_t left = num_documents;
  for (int64_t length = 1; length < capacity; ++length) {
    const int64_t most = std::min(left, 2 * num_documents / capacity);
    counts[static_cast<size_t>(length)] = static_cast<int64_t>(random.below(uint64_t(most) + 1));
    left -= counts[static_cast<size_t>(length)];
  }
  counts[static_cast<size_t>(capacity)] = left;
  dsm::BestFitPlanner planner(capacity);
  int64_t first = 0;
  int64_t num_tokens = 0;
  std::vector<int64_t> length_at;  // where each class begins, and its length
  for (int64_t length = capacity; length > 0; --length) {
    const int64_t count = counts[static_cast<size_t>(length)];
    planner.place(length, count, first);
    first += count;
    num_tokens += count * length;
    length_at.push_back(first);
  }
  CHECK(first == num_documents && num_tokens > int64_t{1} << 32);
  const auto length_of_sorted = [&](int64_t position) {
    const auto it = std::upper_bound(length_at.begin(), length_at.end(), position);
    return capacity - (it - length_at.begin());
  };

  const dsm::PackGroups groups = std::move(planner).finish();
  std::vector<std::pair<int64_t, int64_t>> used;  // sorted documents [first, last) of a slice
  int64_t num_packs = 0;
  groups.for_each_slice(0, groups.num_packs(), [&](int64_t pack, const dsm::GroupSlice& slice) {
    CHECK(pack == num_packs);
    num_packs += slice.count;
    int64_t tokens = 0;
    int64_t offset = slice.offset;
    for (int32_t idx = slice.group; idx >= 0; idx = groups.group(idx).parent) {
      const dsm::PackGroup& group = groups.group(idx);
      const int64_t begin = group.first + offset * group.repeat;
      used.emplace_back(begin, begin + slice.count * group.repeat);
      tokens += group.repeat * length_of_sorted(begin);
      CHECK(length_of_sorted(begin) == length_of_sorted(used.back().second - 1));
      offset += group.parent_offset;
    }
    CHECK(tokens > 0 && tokens <= capacity);
  });
  std::sort(used.begin(), used.end());
  int64_t end = 0;
  for (const auto& [begin, stop] : used) {
    CHECK(begin == end);
    end = stop;
  }
  CHECK(end == num_documents);
  CHECK(num_packs >= (num_tokens + capacity - 1) / capacity);
  std::printf("best fit: %lld documents, %lld tokens, %lld packs, %.4f full, %zu slices\n",
              static_cast<long long>(num_documents), static_cast<long long>(num_tokens),
              static_cast<long long>(num_packs),
              static_cast<double>(num_tokens) / static_cast<double>(capacity) /
                  static_cast<double>(num_packs),
              used.size());
}

}  // namespace

int main() {
  the_plan_of_best_fit_uses_each_sorted_document_once();
  the_stream_of_more_than_32_bits_of_documents_is_packed_whole();
  return 0;
}
