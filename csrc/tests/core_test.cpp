// Checks of the pieces below the public functions, which Python cannot reach.

#include <limits>
#include <vector>

#include "core/checked_size.h"
#include "core/error.h"
#include "core/random.h"
#include "core/residual_set.h"
#include "tests/check.h"

namespace {

void residual_set_finds_the_smallest_member_at_or_above() {
  constexpr int64_t limit = 300'000;  // four levels of words
  dsm::ResidualSet set(limit);
  CHECK(set.find_at_least(0) == -1);
  dsm::RandomStream random(2);
  std::vector<bool> members(limit + 1, false);
  for (int i = 0; i < 2'000; ++i) {
    const int64_t value = static_cast<int64_t>(random.below(limit + 1));
    members[static_cast<size_t>(value)] = !members[static_cast<size_t>(value)];
    members[static_cast<size_t>(value)] ? set.insert(value) : set.erase(value);
    const int64_t bound = static_cast<int64_t>(random.below(limit + 1));
    int64_t expected = bound;
    while (expected <= limit && !members[static_cast<size_t>(expected)]) ++expected;
    CHECK(set.find_at_least(bound) == (expected > limit ? -1 : expected));
  }
}

void sizes_remember_that_they_overflowed() {
  constexpr dsm::CheckedSize largest(std::numeric_limits<uint64_t>::max());
  static_assert((largest + dsm::CheckedSize(1)).overflowed());
  static_assert((largest * dsm::CheckedSize(2)).overflowed());
  static_assert(((largest + dsm::CheckedSize(1)) * dsm::CheckedSize(0)).overflowed());
  static_assert((dsm::CheckedSize(6) * dsm::CheckedSize(7)).equals(42));
  static_assert(!largest.overflowed());
}

void random_numbers_stay_below_their_bound() {
  dsm::RandomStream random(3);
  for (const uint64_t bound : {uint64_t{1}, uint64_t{3}, (uint64_t{1} << 63) + 1}) {
    for (int i = 0; i < 1'000; ++i) CHECK(random.below(bound) < bound);
  }
}

}  // namespace

int main() {
  residual_set_finds_the_smallest_member_at_or_above();
  sizes_remember_that_they_overflowed();
  random_numbers_stay_below_their_bound();
  return 0;
}
