#include "core/vector_loops.h"

#include <algorithm>

#include "core/random.h"

// Sanitizers do not survive the resolvers that choose a version at load time.
#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define DSM_VECTOR_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DSM_VECTOR_CLONES
#endif

namespace dsm {
namespace {

template <class Token, class Index>
[[gnu::always_inline]] inline bool widen(const Token* __restrict tokens, int64_t n, uint32_t last,
                                         Index* __restrict out) {
  uint32_t outside = 0;  // its top bit: a token was negative, or last - token was
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t token = static_cast<uint32_t>(tokens[i]);
    outside |= token | (last - token);
    out[i] = static_cast<Index>(tokens[i]);
  }
  return outside >> 31 == 0;
}

template <class Index>
[[gnu::always_inline]] inline void ascend(Index* out, int64_t n, int64_t first) {
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<Index>(first + i);
}

template <class Value>
[[gnu::always_inline]] inline void fill(Value* out, int64_t n, Value value) {
  for (int64_t i = 0; i < n; ++i) out[i] = value;
}

}  // namespace

DSM_VECTOR_CLONES bool widen_tokens(const uint16_t* tokens, int64_t n, uint32_t last,
                                    int32_t* out) {
  return widen(tokens, n, last, out);
}
DSM_VECTOR_CLONES bool widen_tokens(const uint16_t* tokens, int64_t n, uint32_t last,
                                    int64_t* out) {
  return widen(tokens, n, last, out);
}
DSM_VECTOR_CLONES bool widen_tokens(const int32_t* tokens, int64_t n, uint32_t last, int32_t* out) {
  return widen(tokens, n, last, out);
}
DSM_VECTOR_CLONES bool widen_tokens(const int32_t* tokens, int64_t n, uint32_t last, int64_t* out) {
  return widen(tokens, n, last, out);
}

DSM_VECTOR_CLONES void fill_ascending(int32_t* out, int64_t n, int64_t first) {
  ascend(out, n, first);
}
DSM_VECTOR_CLONES void fill_ascending(int64_t* out, int64_t n, int64_t first) {
  ascend(out, n, first);
}

DSM_VECTOR_CLONES void fill_equal(int32_t* out, int64_t n, int32_t value) { fill(out, n, value); }
DSM_VECTOR_CLONES void fill_equal(int64_t* out, int64_t n, int64_t value) { fill(out, n, value); }
DSM_VECTOR_CLONES void fill_equal(float* out, int64_t n, float value) { fill(out, n, value); }

DSM_VECTOR_CLONES void fill_random_words(uint64_t key, uint64_t first, uint64_t* out, int64_t n) {
  const uint64_t start = key + (first + 1) * golden_gamma;
  for (int64_t i = 0; i < n; ++i) out[i] = mix64(start + static_cast<uint64_t>(i) * golden_gamma);
}

DSM_VECTOR_CLONES bool fill_descending_draws(const uint64_t* words, uint64_t bound, uint32_t* out,
                                             int64_t n) {
  uint32_t suspicious = 0;
  uint32_t first_bound = static_cast<uint32_t>(bound);
  for (int64_t i = 0; i < n / 2; ++i) {
    const uint32_t low_bound = first_bound - 2 * static_cast<uint32_t>(i);
    const uint32_t high_bound = low_bound - 1;
    const uint64_t low = (words[i] & 0xFFFFFFFFu) * low_bound;
    const uint64_t high = (words[i] >> 32) * high_bound;
    suspicious |= static_cast<uint32_t>(static_cast<uint32_t>(low) < low_bound) |
                  static_cast<uint32_t>(static_cast<uint32_t>(high) < high_bound);
    out[2 * i] = static_cast<uint32_t>(low >> 32);
    out[2 * i + 1] = static_cast<uint32_t>(high >> 32);
  }
  return suspicious != 0;
}

DSM_VECTOR_CLONES void lower_to_minima(const uint32_t* __restrict values, int64_t n,
                                       const uint32_t* __restrict masks,
                                       const uint32_t* __restrict factors,
                                       uint32_t* __restrict minima, int64_t m) {
  for (int64_t j = 0; j < n; ++j) {
    const uint32_t value = values[j];
    for (int64_t i = 0; i < m; ++i) {
      const uint32_t image = (value ^ masks[i]) * factors[i];
      minima[i] = std::min(minima[i], image);
    }
  }
}

DSM_VECTOR_CLONES LengthRange range_of_lengths(const int32_t* lengths, int64_t n) {
  int32_t shortest = lengths[0];
  int32_t longest = lengths[0];
  int64_t total = 0;
  for (int64_t i = 0; i < n; ++i) {
    shortest = std::min(shortest, lengths[i]);
    longest = std::max(longest, lengths[i]);
    total += lengths[i];
  }
  return {shortest, longest, total};
}

}  // namespace dsm
