#include "core/pack_order.h"

#include <bit>

#include "core/error.h"
#include "core/random.h"

namespace dsm {
namespace {

constexpr int num_rounds = 8;

/// A balanced Feistel network: a bijection of words of 2 * half_bits bits.
uint64_t encrypt(uint64_t word, uint64_t key, int half_bits) {
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  uint64_t left = word >> half_bits;
  uint64_t right = word & mask;
  for (uint64_t round = 0; round < num_rounds; ++round) {
    const uint64_t next = left ^ (mix64(right + mix64(key + round * golden_gamma)) & mask);
    left = right;
    right = next;
  }
  return (left << half_bits) | right;
}

}  // namespace

PackOrder::PackOrder(int64_t num_packs, uint64_t seed) : num_packs_(num_packs), seed_(seed) {
  if (num_packs < 1) {
    throw InputError(concat("an order of packs needs at least one pack, found ", num_packs));
  }
  const int bits = std::bit_width(static_cast<uint64_t>(num_packs) - 1);
  half_bits_ = bits < 2 ? 1 : (bits + 1) / 2;
}

int64_t PackOrder::pack_at(int64_t position) const {
  if (position < 0) throw InputError(concat("a pack's position is at least 0, found ", position));
  const uint64_t epoch = static_cast<uint64_t>(position / num_packs_);
  const uint64_t key = derive_key({seed_, epoch});
  uint64_t word = static_cast<uint64_t>(position % num_packs_);
  // Cycle walking: the network permutes less than 4 * num_packs words (4 of them where there are
  // one or two packs), and walking on until a word is a pack permutes the packs.
  do {
    word = encrypt(word, key, half_bits_);
  } while (word >= static_cast<uint64_t>(num_packs_));
  return static_cast<int64_t>(word);
}

}  // namespace dsm
