#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/hash_index.h"

namespace dsm {

/// Minima of a signature, a byte of each.
constexpr int64_t signature_size = 128;

/// What of a text is compared with other texts.
struct TextFingerprint {
  uint64_t exact;    // of all tokens in order
  uint64_t numbers;  // of the numbers and marks in order
  std::array<uint8_t, signature_size> signature;
};

/// A pure function of the text. The signature is Broder's MinHash over the shingles of
/// `shingle_tokens` tokens, 128 permutations, of each minimum eight bits of a hash (b-bit minwise
/// hashing, Li and Koenig 2010).
TextFingerprint fingerprint_text(std::string_view text);

constexpr int64_t shingle_tokens = 5;

/// The arrays have an entry a text, `signatures` signature_size.
void fingerprint_texts(std::span<const std::string_view> texts, int threads,
                       std::span<uint64_t> exact, std::span<uint64_t> numbers,
                       std::span<uint8_t> signatures);

enum class DuplicateVerdict : uint8_t { fresh, exact, near };

/// Decides about documents one after the other: each is compared with those kept before it, and
/// kept where it is fresh. Candidates share a band of the signature and the numbers (LSH); the
/// estimate of the Jaccard similarity over the whole signature then decides. docs/preprocessing.md
/// has the memory it takes.
class DuplicateFinder {
 public:
  /// Throws InputError unless 0 < threshold <= 1.
  explicit DuplicateFinder(double threshold);

  /// The next document's verdict; `of` is the number, from 0, of the earliest kept document that
  /// it is a duplicate of, or -1. Throws InputError beyond 2^32 - 2 documents.
  DuplicateVerdict add(uint64_t exact, uint64_t numbers, std::span<const uint8_t> signature,
                       int64_t& of);

  /// The same for many; the spans have an entry a document, `signatures` signature_size.
  void add_all(std::span<const uint64_t> exact, std::span<const uint64_t> numbers,
               std::span<const uint8_t> signatures, std::span<uint8_t> verdicts,
               std::span<int64_t> of);

  int64_t num_documents() const { return num_documents_; }

 private:
  static constexpr int64_t band_size = 8;
  static constexpr int64_t num_bands = signature_size / band_size;
  using BandKeys = std::array<uint64_t, num_bands>;

  struct Kept {
    uint64_t numbers;
    uint32_t document;
  };

  static BandKeys band_keys(uint64_t numbers, const uint8_t* signature);
  int64_t find_near(const BandKeys& keys, uint64_t numbers, const uint8_t* signature) const;
  void keep(const BandKeys& keys, uint64_t exact, uint64_t numbers, const uint8_t* signature);
  void insert_bands(const BandKeys& keys, uint32_t kept_idx);
  void grow_bands();
  void prefetch(uint64_t exact, const BandKeys& keys) const;

  int64_t least_matches_;
  int64_t num_documents_ = 0;
  HashIndex exact_;
  std::vector<Kept> kept_;
  std::vector<uint8_t> signatures_;  // of those kept
  std::vector<uint64_t> bands_;      // open addressing: half of the key, and the index into kept_
};

}  // namespace dsm
