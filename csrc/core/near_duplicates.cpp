#include "core/near_duplicates.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/parallel.h"
#include "core/text_hash.h"
#include "core/text_tokens.h"
#include "core/vector_loops.h"

namespace dsm {
namespace {

constexpr uint64_t empty_slot = UINT64_MAX;
constexpr int64_t texts_a_part = 64;

struct Permutations {
  std::array<uint32_t, signature_size> masks;
  std::array<uint32_t, signature_size> factors;
};

// x -> (x ^ mask) * factor, a bijection of 32-bit words.
constexpr Permutations make_permutations() {
  Permutations permutations{};
  RandomStream random(derive_key({0x6D696E68617368}));
  for (size_t i = 0; i < signature_size; ++i) {
    permutations.masks[i] = static_cast<uint32_t>(random.next());
    permutations.factors[i] = static_cast<uint32_t>(random.next()) | 1;
  }
  return permutations;
}

constexpr Permutations permutations = make_permutations();

struct Scratch {
  std::vector<TextToken> tokens;
  std::vector<uint64_t> words;
  std::vector<uint64_t> numbers;
  std::vector<uint32_t> shingles;
  RunHashes runs;
};

uint64_t hash_of_all(RunHashes& runs, std::span<const uint64_t> words) {
  runs.assign(words);
  return runs.run(0, runs.size(), 0);
}

TextFingerprint fingerprint_with(Scratch& scratch, std::string_view text) {
  read_tokens(text, scratch.tokens);
  scratch.words.clear();
  scratch.numbers.clear();
  for (const TextToken& token : scratch.tokens) {
    scratch.words.push_back(token.hash);
    if (token.kind == TextTokenKind::number || token.kind == TextTokenKind::mark) {
      scratch.numbers.push_back(token.hash);
    }
  }
  TextFingerprint fingerprint{};
  fingerprint.numbers = hash_of_all(scratch.runs, scratch.numbers);
  fingerprint.exact = hash_of_all(scratch.runs, scratch.words);

  const int64_t length = std::min(shingle_tokens, scratch.runs.size());
  constexpr uint64_t power = RunHashes::power_of(shingle_tokens);
  scratch.shingles.clear();
  for (int64_t at = 0; length > 0 && at + length <= scratch.runs.size(); ++at) {
    scratch.shingles.push_back(static_cast<uint32_t>(scratch.runs.run(at, length, power) >> 32));
  }
  std::array<uint32_t, signature_size> minima;
  minima.fill(UINT32_MAX);
  lower_to_minima(scratch.shingles.data(), static_cast<int64_t>(scratch.shingles.size()),
                  permutations.masks.data(), permutations.factors.data(), minima.data(),
                  signature_size);
  for (size_t i = 0; i < signature_size; ++i) {
    fingerprint.signature[i] = static_cast<uint8_t>((minima[i] * 0x9E3779B1u) >> 24);
  }
  return fingerprint;
}

int64_t count_equal(const uint8_t* a, const uint8_t* b) {
  int32_t equal = 0;
  for (int64_t i = 0; i < signature_size; ++i) equal += a[i] == b[i];
  return equal;
}

}  // namespace

TextFingerprint fingerprint_text(std::string_view text) {
  Scratch scratch;
  return fingerprint_with(scratch, text);
}

void fingerprint_texts(std::span<const std::string_view> texts, int threads,
                       std::span<uint64_t> exact, std::span<uint64_t> numbers,
                       std::span<uint8_t> signatures) {
  const auto n = static_cast<int64_t>(texts.size());
  const int64_t parts = (n + texts_a_part - 1) / texts_a_part;
  for_each_part(threads, parts, [&](int64_t part) {
    Scratch scratch;
    const auto end = static_cast<size_t>(part_begin(n, parts, part + 1));
    for (auto i = static_cast<size_t>(part_begin(n, parts, part)); i < end; ++i) {
      const TextFingerprint fingerprint = fingerprint_with(scratch, texts[i]);
      exact[i] = fingerprint.exact;
      numbers[i] = fingerprint.numbers;
      std::ranges::copy(fingerprint.signature, signatures.begin() + i * signature_size);
    }
  });
}

// Of bytes that are not of equal minima, one in 256 is equal all the same.
DuplicateFinder::DuplicateFinder(double threshold)
    : least_matches_(static_cast<int64_t>(
          std::ceil(signature_size * (1.0 + 255.0 * threshold) / 256.0 - 1e-9))),
      bands_(1024, empty_slot) {
  if (!(threshold > 0.0 && threshold <= 1.0)) {
    throw InputError(concat("threshold: a similarity above 0 and at most 1, found ", threshold));
  }
}

DuplicateVerdict DuplicateFinder::add(uint64_t exact, uint64_t numbers,
                                      std::span<const uint8_t> signature, int64_t& of) {
  if (num_documents_ >= int64_t{HashIndex::none}) {
    throw InputError("duplicates are looked for among fewer than 2^32 - 1 documents");
  }
  const uint32_t same = exact_.find(exact);
  const BandKeys keys = band_keys(numbers, signature.data());
  of = same != HashIndex::none ? same : find_near(keys, numbers, signature.data());
  if (of < 0) keep(keys, exact, numbers, signature.data());
  ++num_documents_;
  return same != HashIndex::none ? DuplicateVerdict::exact
         : of >= 0               ? DuplicateVerdict::near
                                 : DuplicateVerdict::fresh;
}

void DuplicateFinder::add_all(std::span<const uint64_t> exact, std::span<const uint64_t> numbers,
                              std::span<const uint8_t> signatures, std::span<uint8_t> verdicts,
                              std::span<int64_t> of) {
  const auto signature_at = [&](size_t i) {
    return signatures.subspan(i * signature_size, signature_size);
  };
  for (size_t i = 0; i < exact.size(); ++i) {
    if (i + 1 < exact.size()) {  // the memory of the next one comes while this one is decided
      prefetch(exact[i + 1], band_keys(numbers[i + 1], signature_at(i + 1).data()));
    }
    verdicts[i] = static_cast<uint8_t>(add(exact[i], numbers[i], signature_at(i), of[i]));
  }
}

DuplicateFinder::BandKeys DuplicateFinder::band_keys(uint64_t numbers, const uint8_t* signature) {
  static_assert(band_size == sizeof(uint64_t));
  BandKeys keys;
  for (size_t band = 0; band < num_bands; ++band) {
    uint64_t rows;
    std::memcpy(&rows, signature + band * band_size, sizeof rows);
    keys[band] = mix64(mix64(rows) + numbers + band * golden_gamma);
  }
  return keys;
}

int64_t DuplicateFinder::find_near(const BandKeys& keys, uint64_t numbers,
                                   const uint8_t* signature) const {
  const size_t mask = bands_.size() - 1;
  uint32_t earliest = HashIndex::none;
  for (const uint64_t key : keys) {
    for (size_t at = key & mask; bands_[at] != empty_slot; at = (at + 1) & mask) {
      const auto kept_idx = static_cast<uint32_t>(bands_[at]);
      if (bands_[at] >> 32 != key >> 32 || kept_idx >= earliest) continue;
      if (kept_[kept_idx].numbers != numbers) continue;
      const uint8_t* other = signatures_.data() + int64_t{kept_idx} * signature_size;
      if (count_equal(signature, other) >= least_matches_) earliest = kept_idx;
    }
  }
  return earliest == HashIndex::none ? -1 : int64_t{kept_[earliest].document};
}

void DuplicateFinder::keep(const BandKeys& keys, uint64_t exact, uint64_t numbers,
                           const uint8_t* signature) {
  const auto document = static_cast<uint32_t>(num_documents_);
  const auto kept_idx = static_cast<uint32_t>(kept_.size());
  exact_.insert(exact, document);
  kept_.push_back({numbers, document});
  signatures_.insert(signatures_.end(), signature, signature + signature_size);
  if (4 * kept_.size() * num_bands > 3 * bands_.size()) {
    grow_bands();
  } else {
    insert_bands(keys, kept_idx);
  }
}

void DuplicateFinder::insert_bands(const BandKeys& keys, uint32_t kept_idx) {
  const size_t mask = bands_.size() - 1;
  for (const uint64_t key : keys) {
    size_t at = key & mask;
    while (bands_[at] != empty_slot) at = (at + 1) & mask;
    bands_[at] = key >> 32 << 32 | kept_idx;
  }
}

void DuplicateFinder::grow_bands() {
  bands_.assign(2 * bands_.size(), empty_slot);
  for (size_t i = 0; i < kept_.size(); ++i) {
    insert_bands(band_keys(kept_[i].numbers, signatures_.data() + i * signature_size),
                 static_cast<uint32_t>(i));
  }
}

void DuplicateFinder::prefetch(uint64_t exact, const BandKeys& keys) const {
  exact_.prefetch(exact);
  for (const uint64_t key : keys) __builtin_prefetch(&bands_[key & (bands_.size() - 1)]);
}

}  // namespace dsm
