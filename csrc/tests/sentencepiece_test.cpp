// The encoder of SentencePiece BPE models: merges, cuts, caches and threads against the plain
// algorithm over the whole text, which tests in Python hold against the library.

#include <algorithm>
#include <limits>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/random.h"
#include "core/sentencepiece_bpe.h"
#include "tests/check.h"

namespace {

using dsm::PieceKind;
using dsm::SentencePiece;

constexpr std::string_view mark = "\xE2\x96\x81";

// Owns the texts: a model of random pieces over a few characters, one of them a space.
class Model {
 public:
  Model(uint64_t seed, bool byte_fallback) : byte_fallback_(byte_fallback) {
    dsm::RandomStream random(seed);
    add("<unk>", PieceKind::unknown);
    add("<s>", PieceKind::control);
    add("</s>", PieceKind::control);
    if (byte_fallback) add_bytes();
    add("\n", PieceKind::user_defined);
    add("ab\n", PieceKind::user_defined);
    for (const std::string_view c : alphabet()) add(std::string(c), PieceKind::normal);
    for (int i = 0; i < 60; ++i) {
      std::string text;
      for (uint64_t n = 2 + random.below(5); n > 0; --n) text += character(random);
      add(text, PieceKind::normal);
    }
  }

  // "é" stands in longer pieces only: merges may still take it in.
  static std::vector<std::string_view> alphabet() { return {mark, "a", "b", "<", "s", ">", "中"}; }

  static std::string character(dsm::RandomStream& random) {
    std::vector<std::string_view> all = alphabet();
    all.push_back("é");
    return std::string(all[random.below(all.size())]);
  }

  std::vector<SentencePiece> pieces() const {
    std::vector<SentencePiece> pieces;
    for (size_t i = 0; i < texts_.size(); ++i) {
      // Some scores are equal: the leftmost merge comes first then.
      pieces.push_back({texts_[i], -static_cast<float>(i / 2), kinds_[i]});
    }
    return pieces;
  }

  bool byte_fallback() const { return byte_fallback_; }

  int32_t find(std::string_view text) const {
    const auto found = std::find(texts_.begin(), texts_.end(), text);
    return found == texts_.end() ? -1 : static_cast<int32_t>(found - texts_.begin());
  }

 private:
  void add(std::string text, PieceKind kind) {
    if (find(text) >= 0) return;
    texts_.push_back(std::move(text));
    kinds_.push_back(kind);
  }

  void add_bytes() {
    constexpr std::string_view digits = "0123456789ABCDEF";
    for (size_t byte = 0; byte < 256; ++byte) {
      add(std::string("<0x") + digits[byte / 16] + digits[byte % 16] + '>', PieceKind::byte);
    }
  }

  bool byte_fallback_;
  std::vector<std::string> texts_;
  std::vector<PieceKind> kinds_;
};

// The library's algorithm in its plainest form: of all neighbours that make a piece the best is
// merged, until none is left.
std::vector<int32_t> encode_plainly(const Model& model, std::string text) {
  for (size_t at; (at = text.find(' ')) != text.npos;) text.replace(at, 1, mark);
  const std::vector<SentencePiece> pieces = model.pieces();
  struct Symbol {
    std::string text;
    bool frozen;
  };
  std::vector<Symbol> symbols;
  for (size_t i = 0; i < text.size();) {
    size_t n = 0;
    for (const SentencePiece& piece : pieces) {
      const bool defined = piece.kind == PieceKind::user_defined;
      if (defined && text.compare(i, piece.text.size(), piece.text) == 0) {
        n = std::max(n, piece.text.size());
      }
    }
    const bool frozen = n > 0;
    const auto lead = static_cast<uint8_t>(text[i]);
    if (!frozen) n = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
    symbols.push_back({text.substr(i, n), frozen});
    i += n;
  }
  for (;;) {
    size_t best = symbols.size();
    float best_score = 0;
    for (size_t i = 0; i + 1 < symbols.size(); ++i) {
      if (symbols[i].frozen || symbols[i + 1].frozen) continue;
      const int32_t id = model.find(symbols[i].text + symbols[i + 1].text);
      if (id < 0 || pieces[static_cast<size_t>(id)].kind != PieceKind::normal) continue;
      const float score = pieces[static_cast<size_t>(id)].score;
      if (best < symbols.size() && score <= best_score) continue;
      best = i;
      best_score = score;
    }
    if (best == symbols.size()) break;
    symbols[best].text += symbols[best + 1].text;
    symbols.erase(symbols.begin() + static_cast<int64_t>(best) + 1);
  }
  std::vector<int32_t> ids;
  for (const Symbol& symbol : symbols) {
    const int32_t id = model.find(symbol.text);
    if (id >= 0) {
      ids.push_back(id);
    } else if (model.byte_fallback()) {
      for (const char c : symbol.text) ids.push_back(3 + static_cast<uint8_t>(c));
    } else if (ids.empty() || ids.back() != 0) {
      ids.push_back(0);
    }
  }
  return ids;
}

std::vector<int32_t> ids_of(const dsm::EncodedTexts& encoded, int64_t i) {
  return {encoded.ids.data() + encoded.offsets[i], encoded.ids.data() + encoded.offsets[i + 1]};
}

std::vector<int32_t> encode(const dsm::SentencePieceBpe& encoder, std::string_view text,
                            bool continuation = true) {
  return ids_of(encoder.encode_batch({&text, 1}, continuation, 1), 0);
}

std::vector<std::string> random_texts(uint64_t seed, int count) {
  dsm::RandomStream random(seed);
  const std::vector<std::string> others{" ",     " ", "\n", "<s>", "</s>",
                                        "<unk>", "é", "😀", "zz",  "<0x61>"};
  std::vector<std::string> texts;
  for (int i = 0; i < count; ++i) {
    std::string text;
    for (uint64_t n = random.below(60); n > 0; --n) {
      text += random.below(3) == 0 ? others[random.below(others.size())] : Model::character(random);
    }
    texts.push_back(text);
  }
  return texts;
}

void ids_are_those_of_the_plain_algorithm() {
  for (uint64_t seed = 0; seed < 8; ++seed) {
    const Model model(seed, seed % 2 == 0);
    const dsm::SentencePieceBpe encoder(model.pieces(), model.byte_fallback(), true);
    for (const std::string& text : random_texts(100 + seed, 300)) {
      const std::vector<int32_t> expected = encode_plainly(model, text);
      CHECK(encode(encoder, text) == expected);
      CHECK(encode(encoder, text) == expected);  // from the cache
      const bool prefix = !text.empty();
      CHECK(encode(encoder, text, false) == encode_plainly(model, prefix ? " " + text : text));
    }
  }
}

void threads_and_callers_do_not_change_the_ids() {
  const Model model(11, true);
  const dsm::SentencePieceBpe encoder(model.pieces(), true, false);
  std::vector<std::string> texts = random_texts(12, 400);
  for (int i = 0; i < 8; ++i) texts[static_cast<size_t>(40 * i)] = std::string(90'000, 'a');
  const std::vector<std::string_view> views(texts.begin(), texts.end());
  const dsm::EncodedTexts expected = encoder.encode_batch(views, false, 1);
  const auto check = [&] {
    const dsm::EncodedTexts found = encoder.encode_batch(views, false, 3);
    CHECK(std::ranges::equal(found.ids.span(), expected.ids.span()));
    CHECK(std::ranges::equal(found.offsets.span(), expected.offsets.span()));
  };
  std::vector<std::jthread> callers;
  for (int i = 0; i < 3; ++i) callers.emplace_back(check);
}

void no_texts_and_empty_texts_have_no_ids() {
  const dsm::SentencePieceBpe encoder(Model(1, true).pieces(), true, true);
  CHECK(encoder.encode_batch({}, false, 2).offsets.size() == 1);
  const std::vector<std::string_view> empty(3);
  const dsm::EncodedTexts encoded = encoder.encode_batch(empty, false, 2);
  CHECK(encoded.ids.size() == 0);
  CHECK(encoded.offsets.size() == 4 && encoded.offsets[3] == 0);
}

// The bindings hand over valid text only; the sanitizers see to it that other bytes do no harm.
void bytes_that_are_no_text_do_no_harm() {
  const dsm::SentencePieceBpe encoder(Model(2, true).pieces(), true, true);
  dsm::RandomStream random(3);
  for (int i = 0; i < 2'000; ++i) {
    std::string bytes;
    for (uint64_t n = random.below(40); n > 0; --n) {
      bytes += static_cast<char>(random.below(3) == 0 ? 0xF0 : random.below(256));
    }
    encode(encoder, bytes);
  }
}

template <class Change>
void refused(Change change) {
  const Model model(5, true);
  std::vector<SentencePiece> pieces = model.pieces();
  change(pieces);
  try {
    const dsm::SentencePieceBpe encoder(pieces, true, true);
  } catch (const dsm::InputError&) {
    return;
  }
  CHECK(!"an InputError");
}

void pieces_that_are_not_covered_are_refused() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  refused([](auto& pieces) { pieces.clear(); });
  refused([](auto& pieces) { pieces.back().kind = PieceKind::unused; });
  refused([](auto& pieces) { pieces.back().text = ""; });
  refused([&](auto& pieces) { pieces.back().score = nan; });
  refused([](auto& pieces) { pieces.push_back(pieces.back()); });
  refused([](auto& pieces) { pieces.push_back({"|", 0, PieceKind::control}); });
  refused([](auto& pieces) { pieces.push_back({"<s>", 0, PieceKind::normal}); });
  refused([](auto& pieces) { pieces[3].text = "<0xZZ>"; });
  refused([](auto& pieces) { pieces.erase(pieces.begin() + 3); });
  refused([](auto& pieces) { pieces.erase(pieces.begin()); });
}

}  // namespace

int main() {
  ids_are_those_of_the_plain_algorithm();
  threads_and_callers_do_not_change_the_ids();
  no_texts_and_empty_texts_have_no_ids();
  bytes_that_are_no_text_do_no_harm();
  pieces_that_are_not_covered_are_refused();
  return 0;
}
