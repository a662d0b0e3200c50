#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "core/hash_index.h"
#include "core/text_hash.h"
#include "core/text_tokens.h"

namespace dsm {

enum class TextLanguage : uint8_t { english, chinese };

/// How a benchmark text is found in training texts.
enum class TextCoverage : uint8_t { nothing, equality, whole_text, ngrams };

/// What of a training example is a benchmark's.
enum class HitKind : uint8_t { none, ngram, contained, question };

/// The benchmark text, by its number from 0 in the order of `add`; -1 where there is none.
struct Hit {
  int64_t text = -1;
  HitKind kind = HitKind::none;
};

/// The n-grams of one language's words.
struct NgramRule {
  int64_t ngram;     // words of an n-gram
  int64_t shortest;  // shorter benchmark texts than this are found by equality alone
};

/// Finds benchmark texts in training examples, by 64-bit hashes of runs of words. Words are those
/// of read_words in English; in Chinese the tokens of read_tokens without punctuation. Every
/// training text is looked at in both ways. Once texts are no longer added, any number of threads
/// may look.
class ContaminationIndex {
 public:
  /// Throws InputError unless 1 <= shortest <= ngram <= 255.
  ContaminationIndex(NgramRule english, NgramRule chinese);

  /// The next benchmark text. Where several texts have an n-gram, it counts as the first one's.
  TextCoverage add(std::string_view text, TextLanguage language);

  /// The first hit: the whole question, else from the left, in the question before the answer.
  Hit find(std::string_view question, std::string_view answer) const;

  /// The same for many; the spans have an entry an example.
  void find_all(std::span<const std::string_view> questions,
                std::span<const std::string_view> answers, int threads, std::span<int64_t> texts,
                std::span<uint8_t> kinds) const;

  int64_t num_texts() const { return num_texts_; }

 private:
  struct Side {
    NgramRule rule;
    uint64_t ngram_power;
    uint64_t prefix_power;
    std::vector<int64_t> short_lengths;  // of the texts shorter than an n-gram, longest first
    HashIndex table;               // of n-grams, whole texts, and the beginnings of short ones
    std::vector<uint64_t> filter;  // bits of the keys: most look-ups end here, in the cache
  };
  struct Scratch;

  static void read(std::string_view text, TextLanguage language, Scratch& scratch);
  static void insert(Side& side, uint64_t key, uint32_t text);
  static uint32_t look_up(const Side& side, uint64_t key);
  Hit find_with(Scratch& scratch, std::string_view question, std::string_view answer) const;
  static Hit find_runs(const Side& side, const RunHashes& runs);

  std::array<Side, 2> sides_;
  int64_t num_texts_ = 0;
};

}  // namespace dsm
