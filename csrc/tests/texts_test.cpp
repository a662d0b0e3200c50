// Tokens of any bytes, the search for near duplicates against all pairs, and n-grams against plain
// search, on several threads. Python's tests hold the rules of tokens against a reference.

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/contamination_index.h"
#include "core/error.h"
#include "core/near_duplicates.h"
#include "core/random.h"
#include "core/text_tokens.h"
#include "tests/check.h"

namespace {

// In memory of its own, so that a sanitizer sees every byte read beyond it.
class OwnText {
 public:
  explicit OwnText(std::string_view text)
      : size_(text.size()), bytes_(std::make_unique<char[]>(text.size())) {
    std::ranges::copy(text, bytes_.get());
  }
  std::string_view view() const { return {bytes_.get(), size_}; }

 private:
  size_t size_;
  std::unique_ptr<char[]> bytes_;
};

std::string random_bytes(dsm::RandomStream& random, uint64_t longest) {
  constexpr std::array<std::string_view, 16> parts{"$",    "$$", "\\(", "\\)",  "\\", "\n\n",
                                                   "{,}",  ",",  "123", "\x1F", "。", "１２",
                                                   "\xF0", "a ", " ",   "frac"};
  std::string text;
  for (uint64_t n = random.below(longest); n > 0; --n) {
    if (random.below(3) > 0) {
      text += parts[random.below(parts.size())];
    } else {
      text += static_cast<char>(random.below(256));
    }
  }
  return text;
}

void any_bytes_can_be_read() {
  dsm::RandomStream random(1);
  std::vector<dsm::TextToken> tokens;
  std::vector<uint64_t> words;
  for (int i = 0; i < 20000; ++i) {
    const OwnText text(random_bytes(random, 40));
    dsm::read_tokens(text.view(), tokens);
    dsm::read_words(text.view(), words);
    CHECK(tokens.size() <= text.view().size());
    CHECK(words.size() <= text.view().size());
  }
}

std::vector<std::string> similar_texts(dsm::RandomStream& random, int count) {
  std::vector<std::string> texts;
  for (int i = 0; i < count; ++i) {
    if (!texts.empty() && random.below(2) == 0) {
      std::string copy = texts[random.below(texts.size())];
      for (uint64_t n = random.below(4); n > 0 && !copy.empty(); --n) {
        copy[random.below(copy.size())] = static_cast<char>('a' + random.below(26));
      }
      texts.push_back(copy);
      continue;
    }
    std::string text;
    for (uint64_t n = random.below(400); n > 0; --n) {
      text += static_cast<char>('a' + random.below(26));
      text += random.below(12) == 0 ? " 7 " : " ";
    }
    texts.push_back(text);
  }
  return texts;
}

struct Fingerprints {
  std::vector<uint64_t> exact;
  std::vector<uint64_t> numbers;
  std::vector<uint8_t> signatures;

  Fingerprints(const std::vector<std::string>& texts, int threads)
      : exact(texts.size()), numbers(texts.size()), signatures(texts.size() * dsm::signature_size) {
    const std::vector<std::string_view> views(texts.begin(), texts.end());
    dsm::fingerprint_texts(views, threads, exact, numbers, signatures);
  }

  std::span<const uint8_t> signature(size_t i) const {
    return std::span(signatures).subspan(i * dsm::signature_size, dsm::signature_size);
  }
};

int64_t num_equal(std::span<const uint8_t> a, std::span<const uint8_t> b) {
  int64_t equal = 0;
  for (size_t i = 0; i < a.size(); ++i) equal += a[i] == b[i];
  return equal;
}

void fingerprints_depend_on_the_text_alone() {
  dsm::RandomStream random(2);
  const std::vector<std::string> texts = similar_texts(random, 500);
  const Fingerprints one(texts, 1);
  const Fingerprints three(texts, 3);
  CHECK(one.exact == three.exact);
  CHECK(one.numbers == three.numbers);
  CHECK(one.signatures == three.signatures);
  for (size_t i = 0; i < texts.size(); ++i) {
    const dsm::TextFingerprint alone = dsm::fingerprint_text(texts[i]);
    CHECK(alone.exact == one.exact[i] && alone.numbers == one.numbers[i]);
    CHECK(std::ranges::equal(alone.signature, one.signature(i)));
  }
}

// The estimate of 0.9 begins at 116 equal bytes of 128: 0.9 of 128, and one in 256 of the others.
void verdicts_are_those_of_all_pairs_where_bands_collide() {
  constexpr int64_t least_equal = 116;
  dsm::RandomStream random(3);
  const std::vector<std::string> texts = similar_texts(random, 3000);
  const Fingerprints prints(texts, 2);
  std::vector<uint8_t> verdicts(texts.size());
  std::vector<int64_t> of(texts.size());
  dsm::DuplicateFinder finder(0.9);
  finder.add_all(prints.exact, prints.numbers, prints.signatures, verdicts, of);

  std::vector<size_t> kept;
  int64_t num_near = 0;
  int64_t num_missed = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    int64_t same = -1;
    int64_t near = -1;
    for (const size_t j : kept) {
      if (same < 0 && prints.exact[i] == prints.exact[j]) same = static_cast<int64_t>(j);
      if (near < 0 && prints.numbers[i] == prints.numbers[j] &&
          num_equal(prints.signature(i), prints.signature(j)) >= least_equal) {
        near = static_cast<int64_t>(j);
      }
    }
    const auto verdict = static_cast<dsm::DuplicateVerdict>(verdicts[i]);
    if (same >= 0) {
      CHECK(verdict == dsm::DuplicateVerdict::exact && of[i] == same);
    } else if (verdict == dsm::DuplicateVerdict::near) {
      CHECK(near >= 0 && of[i] >= near);
      ++num_near;
    } else {
      CHECK(verdict == dsm::DuplicateVerdict::fresh && of[i] == -1);
      num_missed += near >= 0;
      kept.push_back(i);
    }
  }
  CHECK(num_near > 100);
  CHECK(num_missed * 100 <= num_near);
}

void a_threshold_is_a_similarity() {
  for (const double threshold : {0.0, -0.5, 1.5, 0.0 / 0.0}) {
    bool refused = false;
    try {
      dsm::DuplicateFinder finder(threshold);
    } catch (const dsm::InputError&) {
      refused = true;
    }
    CHECK(refused);
  }
}

std::string random_words(dsm::RandomStream& random, uint64_t count) {
  std::string text;
  for (; count > 0; --count) {
    text += static_cast<char>('a' + random.below(3));
    text += ' ';
  }
  return text;
}

// Words of one letter: a run of words is found as a string.
void ngrams_are_found_as_by_plain_search() {
  constexpr int64_t ngram = 6;
  constexpr int64_t shortest = 3;
  dsm::RandomStream random(4);
  dsm::ContaminationIndex index({ngram, shortest}, {ngram, shortest});
  std::vector<std::string> benchmark;
  for (int i = 0; i < 12; ++i) {
    benchmark.push_back(random_words(random, 1 + random.below(10)));
    index.add(benchmark.back(), dsm::TextLanguage::english);
  }
  const auto is_in = [&](const std::string& text, const std::string& question) {
    for (const std::string& known : benchmark) {
      const auto size = static_cast<int64_t>(known.size()) / 2;
      if (known == question) return true;
      if (size < shortest) continue;
      const int64_t window = std::min(size, ngram);
      for (int64_t at = 0; at + window <= size; ++at) {
        const std::string run =
            known.substr(static_cast<size_t>(2 * at), static_cast<size_t>(2 * window));
        if (text.find(run) != std::string::npos) return true;
      }
    }
    return false;
  };
  std::vector<std::string> questions;
  std::vector<std::string> answers;
  for (int i = 0; i < 2000; ++i) {
    questions.push_back(random_words(random, random.below(14)));
    answers.push_back(random_words(random, random.below(14)));
  }
  const std::vector<std::string_view> question_views(questions.begin(), questions.end());
  const std::vector<std::string_view> answer_views(answers.begin(), answers.end());
  std::vector<int64_t> found(questions.size());
  std::vector<uint8_t> kinds(questions.size());
  index.find_all(question_views, answer_views, 3, found, kinds);
  int64_t num_found = 0;
  for (size_t i = 0; i < questions.size(); ++i) {
    const bool expected = is_in(questions[i], questions[i]) || is_in(answers[i], questions[i]);
    CHECK((found[i] >= 0) == expected);
    CHECK((kinds[i] != 0) == expected);
    const dsm::Hit alone = index.find(questions[i], answers[i]);
    CHECK(alone.text == found[i] && static_cast<uint8_t>(alone.kind) == kinds[i]);
    num_found += expected;
  }
  CHECK(num_found > 100 && num_found < 1900);
}

}  // namespace

int main() {
  any_bytes_can_be_read();
  fingerprints_depend_on_the_text_alone();
  verdicts_are_those_of_all_pairs_where_bands_collide();
  a_threshold_is_a_similarity();
  ngrams_are_found_as_by_plain_search();
}
