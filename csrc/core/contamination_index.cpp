#include "core/contamination_index.h"

#include <algorithm>

#include "core/error.h"
#include "core/parallel.h"

namespace dsm {
namespace {

constexpr int64_t longest_ngram = 255;
constexpr int64_t examples_a_part = 64;
constexpr size_t filter_bits_a_key = 16;

// Runs of one hash mean different things by where they stand.
constexpr uint64_t whole_text_salt = mix64(1);
constexpr uint64_t prefix_salt = mix64(2);
constexpr uint64_t short_text_salt = mix64(3);

void set_bit(std::vector<uint64_t>& bits, uint64_t key) {
  bits[(key >> 38) & (bits.size() - 1)] |= uint64_t{1} << (key >> 58);
}

bool has_bit(const std::vector<uint64_t>& bits, uint64_t key) {
  return bits[(key >> 38) & (bits.size() - 1)] >> (key >> 58) & 1;
}

/// False where the text surely has no ideograph, as nearly all English texts.
bool may_have_ideographs(std::string_view text) {
  constexpr uint8_t least_lead = 0xE3;  // of U+3000
  bool found = false;
  for (const char c : text) found |= static_cast<uint8_t>(c) >= least_lead;
  return found;
}

NgramRule checked(NgramRule rule) {
  if (rule.shortest < 1 || rule.shortest > rule.ngram || rule.ngram > longest_ngram) {
    throw InputError(concat("ngram: from the shortest text of ", rule.shortest, " words to ",
                            longest_ngram, ", found ", rule.ngram));
  }
  return rule;
}

}  // namespace

struct ContaminationIndex::Scratch {
  std::vector<TextToken> tokens;
  std::vector<uint64_t> words;
  RunHashes runs;
};

ContaminationIndex::ContaminationIndex(NgramRule english, NgramRule chinese) {
  for (size_t i = 0; i < sides_.size(); ++i) {
    const NgramRule rule = checked(i == 0 ? english : chinese);
    sides_[i] = {.rule = rule,
                 .ngram_power = RunHashes::power_of(rule.ngram),
                 .prefix_power = RunHashes::power_of(rule.shortest),
                 .short_lengths = {},
                 .table = {},
                 .filter = std::vector<uint64_t>(1)};
  }
}

TextCoverage ContaminationIndex::add(std::string_view text, TextLanguage language) {
  if (num_texts_ >= int64_t{HashIndex::none}) {
    throw InputError("a contamination index holds fewer than 2^32 - 1 texts");
  }
  Side& side = sides_[static_cast<size_t>(language)];
  const auto number = static_cast<uint32_t>(num_texts_++);
  Scratch scratch;
  read(text, language, scratch);
  const RunHashes& runs = scratch.runs;
  const int64_t size = runs.size();
  if (size == 0) return TextCoverage::nothing;
  const uint64_t whole = runs.run(0, size, 0);
  insert(side, whole ^ whole_text_salt, number);
  if (size < side.rule.shortest) return TextCoverage::equality;
  if (size < side.rule.ngram) {
    insert(side, runs.run(0, side.rule.shortest, 0) ^ prefix_salt, number);
    insert(side, whole ^ short_text_salt, number);
    if (std::ranges::find(side.short_lengths, size) == side.short_lengths.end()) {
      side.short_lengths.push_back(size);
      std::ranges::sort(side.short_lengths, std::ranges::greater());
    }
    return TextCoverage::whole_text;
  }
  for (int64_t at = 0; at + side.rule.ngram <= size; ++at) {
    insert(side, runs.run(at, side.rule.ngram, side.ngram_power), number);
  }
  return TextCoverage::ngrams;
}

Hit ContaminationIndex::find(std::string_view question, std::string_view answer) const {
  Scratch scratch;
  return find_with(scratch, question, answer);
}

void ContaminationIndex::find_all(std::span<const std::string_view> questions,
                                  std::span<const std::string_view> answers, int threads,
                                  std::span<int64_t> texts, std::span<uint8_t> kinds) const {
  const auto n = static_cast<int64_t>(questions.size());
  const int64_t parts = (n + examples_a_part - 1) / examples_a_part;
  for_each_part(threads, parts, [&](int64_t part) {
    Scratch scratch;
    const auto end = static_cast<size_t>(part_begin(n, parts, part + 1));
    for (auto i = static_cast<size_t>(part_begin(n, parts, part)); i < end; ++i) {
      const Hit hit = find_with(scratch, questions[i], answers[i]);
      texts[i] = hit.text;
      kinds[i] = static_cast<uint8_t>(hit.kind);
    }
  });
}

void ContaminationIndex::read(std::string_view text, TextLanguage language, Scratch& scratch) {
  if (language == TextLanguage::english) {
    read_words(text, scratch.words);
  } else {
    read_tokens(text, scratch.tokens);
    scratch.words.clear();
    for (const TextToken& token : scratch.tokens) {
      if (token.kind == TextTokenKind::punctuation || token.kind == TextTokenKind::mark) continue;
      scratch.words.push_back(token.hash);
    }
  }
  scratch.runs.assign(scratch.words);
}

void ContaminationIndex::insert(Side& side, uint64_t key, uint32_t text) {
  side.table.insert(key, text);
  if (side.table.size() * filter_bits_a_key <= side.filter.size() * 64) {
    set_bit(side.filter, key);
    return;
  }
  side.filter.assign(2 * side.filter.size(), 0);
  side.table.for_each_key([&](uint64_t known) { set_bit(side.filter, known); });
}

uint32_t ContaminationIndex::look_up(const Side& side, uint64_t key) {
  return has_bit(side.filter, key) ? side.table.find(key) : HashIndex::none;
}

Hit ContaminationIndex::find_with(Scratch& scratch, std::string_view question,
                                  std::string_view answer) const {
  Hit first;
  for (size_t i = 0; i < sides_.size(); ++i) {
    const Side& side = sides_[i];
    const auto language = static_cast<TextLanguage>(i);
    if (side.table.size() == 0) continue;
    const auto is_read = [&](std::string_view text) {
      if (language == TextLanguage::chinese && !may_have_ideographs(text)) return false;
      read(text, language, scratch);
      return scratch.runs.size() > 0;
    };
    if (is_read(question)) {
      const uint64_t whole = scratch.runs.run(0, scratch.runs.size(), 0);
      const uint32_t same = look_up(side, whole ^ whole_text_salt);
      if (same != HashIndex::none) return {same, HitKind::question};
      if (first.text < 0) first = find_runs(side, scratch.runs);
    }
    if (first.text < 0 && is_read(answer)) first = find_runs(side, scratch.runs);
  }
  return first;
}

Hit ContaminationIndex::find_runs(const Side& side, const RunHashes& runs) {
  const int64_t size = runs.size();
  for (int64_t at = 0; at + side.rule.shortest <= size; ++at) {
    if (at + side.rule.ngram <= size) {
      const uint32_t text = look_up(side, runs.run(at, side.rule.ngram, side.ngram_power));
      if (text != HashIndex::none) return {text, HitKind::ngram};
    }
    if (side.short_lengths.empty()) continue;
    const uint64_t prefix = runs.run(at, side.rule.shortest, side.prefix_power) ^ prefix_salt;
    if (look_up(side, prefix) == HashIndex::none) continue;
    for (const int64_t length : side.short_lengths) {
      if (at + length > size) continue;
      const uint32_t text = look_up(side, runs.run(at, length) ^ short_text_salt);
      if (text != HashIndex::none) return {text, HitKind::contained};
    }
  }
  return {};
}

}  // namespace dsm
