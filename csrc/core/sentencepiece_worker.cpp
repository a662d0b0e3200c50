#include "core/sentencepiece_worker.h"

#include <algorithm>

#include "core/error.h"
#include "core/utf8.h"

namespace dsm {
namespace {

constexpr size_t max_text_bytes = size_t{1} << 30;  // positions in a text are 32 bits

}  // namespace

void SentencePieceWorker::encode(std::string_view text, bool prefix, std::vector<int32_t>& ids) {
  if (text.size() > max_text_bytes) {
    throw InputError(concat("a text of ", text.size(), " bytes is too long to encode"));
  }
  if (text.empty()) return;
  text_.clear();
  if (prefix) text_.push_back(' ');
  append_with_spaces(text, text_);
  const auto size = static_cast<int64_t>(text_.size());
  text_.resize(text_.size() + std::max<size_t>(utf8_max_bytes, UnitCache::max_unit_bytes));
  text_begin_ = ids.size();
  encode_units(size, ids);
}

void SentencePieceWorker::encode_units(int64_t size, std::vector<int32_t>& ids) {
  const char* text = text_.data();
  int64_t begin = 0;  // of the current unit
  uint32_t previous = 0;
  const auto end_unit = [&](int64_t end) {
    if (end > begin) append_unit(text + begin, static_cast<size_t>(end - begin), ids);
    begin = end;
  };
  for (int64_t i = 0; i < size;) {
    if (tables_.may_begin_symbol(text[i])) {
      const SymbolMatch match = tables_.match_symbol({text + i, static_cast<size_t>(size - i)});
      if (match.num_bytes > 0) {
        end_unit(i);
        append({&match.id, 1}, ids);
        begin = i += match.num_bytes;
        continue;
      }
    }
    const uint32_t character = decode_utf8(text + i);
    if (i > begin && !tables_.joins(previous, character)) end_unit(i);
    previous = character;
    i = std::min(size, i + utf8_bytes(static_cast<uint8_t>(text[i])));
  }
  end_unit(size);
}

void SentencePieceWorker::append_unit(const char* at, size_t num_bytes, std::vector<int32_t>& ids) {
  if (num_bytes > UnitCache::max_unit_bytes) {
    made_.clear();
    merger_.encode({at, num_bytes}, made_);
    append(made_, ids);
    return;
  }
  const UnitCache::Key key = UnitCache::key(at, num_bytes);
  if (const UnitCache::Entry* entry = cache_.find(key)) {
    append({entry->ids.data(), entry->num_ids}, ids);
    return;
  }
  made_.clear();
  merger_.encode({at, num_bytes}, made_);
  cache_.insert(key, made_);
  append(made_, ids);
}

void SentencePieceWorker::append(std::span<const int32_t> added, std::vector<int32_t>& ids) {
  if (tables_.byte_fallback()) {
    ids.insert(ids.end(), added.begin(), added.end());
    return;
  }
  // Unknown characters in a row are one id.
  for (const int32_t id : added) {
    const bool repeats = id == tables_.unk_id() && ids.size() > text_begin_ && ids.back() == id;
    if (!repeats) ids.push_back(id);
  }
}

}  // namespace dsm
