#pragma once

#include <cstdint>

namespace dsm {

// Inner loops that are compiled for several vector widths, of which one is chosen at load time:
// wheels are built for every x86-64 machine, and these loops take most of the time of packing and
// gathering. Every version gives the same bits.

/// Copies n token ids; false where one is outside [0, last].
bool widen_tokens(const uint16_t* tokens, int64_t n, uint32_t last, int32_t* out);
bool widen_tokens(const uint16_t* tokens, int64_t n, uint32_t last, int64_t* out);
bool widen_tokens(const int32_t* tokens, int64_t n, uint32_t last, int32_t* out);
bool widen_tokens(const int32_t* tokens, int64_t n, uint32_t last, int64_t* out);

/// out[i] = first + i.
void fill_ascending(int32_t* out, int64_t n, int64_t first);
void fill_ascending(int64_t* out, int64_t n, int64_t first);

void fill_equal(int32_t* out, int64_t n, int32_t value);
void fill_equal(int64_t* out, int64_t n, int64_t value);
void fill_equal(float* out, int64_t n, float value);

/// The words of RandomStream(key), from the `first`-th on (from 0).
void fill_random_words(uint64_t key, uint64_t first, uint64_t* out, int64_t n);

/// n draws, two from each word (its low half first): out[i] = floor(half * (bound - i) / 2^32).
/// True where a draw may be biased: its remainder is below its bound. n is even, below 2^31, and
/// less than bound; bound is at most 2^32 - 1.
bool fill_descending_draws(const uint64_t* words, uint64_t bound, uint32_t* out, int64_t n);

/// minima[i] = min(minima[i], (values[j] ^ masks[i]) * factors[i]) over all j < n, for i < m.
void lower_to_minima(const uint32_t* values, int64_t n, const uint32_t* masks,
                     const uint32_t* factors, uint32_t* minima, int64_t m);

struct LengthRange {
  int32_t shortest;
  int32_t longest;
  int64_t total;
};

/// Of n >= 1 lengths.
LengthRange range_of_lengths(const int32_t* lengths, int64_t n);

}  // namespace dsm
