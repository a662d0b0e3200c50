#include "core/sentencepiece_worker.h"

#include <algorithm>

#include "core/error.h"
#include "core/utf8.h"

namespace dsm {
namespace {

constexpr size_t max_text_bytes = size_t{1} << 30;
constexpr size_t kept_bytes = size_t{1} << 20;  // of scratch between texts
constexpr size_t units_ahead = 512;  // cut before the first is looked up: their entries fit L2
constexpr size_t readable_bytes = std::max<size_t>(utf8_max_bytes, UnitCache::max_unit_bytes);

}  // namespace

void SentencePieceWorker::encode(std::string_view text, bool prefix, IdList& ids) {
  if (text.size() > max_text_bytes) {
    throw InputError(concat("a text of ", text.size(), " bytes is too long to encode"));
  }
  if (text.empty()) return;
  text_.clear();
  if (prefix) text_.push_back(' ');
  append_with_spaces(text, text_);
  const auto size = static_cast<int32_t>(text_.size());
  text_.resize(text_.size() + readable_bytes);
  text_begin_ = ids.size();
  for (int32_t begin = 0; begin < size;) {
    begin = cut(begin, size);
    for (const Unit& unit : units_) append_unit(unit, ids);
  }
  if (text_.capacity() > kept_bytes) text_ = {};
  if (made_.capacity() > kept_bytes) made_ = {};
}

int32_t SentencePieceWorker::cut(int32_t begin, int32_t size) {
  units_.clear();
  const char* text = text_.data();
  uint32_t previous = 0;
  for (int32_t i = begin; i < size;) {
    if (tables_.may_begin_symbol(text[i])) {
      const SymbolMatch match = tables_.match_symbol({text + i, static_cast<size_t>(size - i)});
      if (match.num_bytes > 0) {
        add_unit(begin, i);
        units_.push_back({i, 0, match.id});
        begin = i += match.num_bytes;
        if (units_.size() >= units_ahead) return begin;
        continue;
      }
    }
    const uint32_t character = decode_utf8(text + i);
    if (i > begin && !tables_.joins(previous, character)) {
      add_unit(begin, i);
      begin = i;
      if (units_.size() >= units_ahead) return begin;
    }
    previous = character;
    i = std::min(size, i + utf8_bytes(static_cast<uint8_t>(text[i])));
  }
  add_unit(begin, size);
  return size;
}

void SentencePieceWorker::add_unit(int32_t begin, int32_t end) {
  if (begin == end) return;
  Unit unit{begin, end - begin, 0};
  if (is_cached(unit.num_bytes)) {
    unit.set_or_id = UnitCache::set_of({text_.data() + begin, static_cast<size_t>(end - begin)});
    cache_.prefetch(unit.set_or_id);
  }
  units_.push_back(unit);
}

void SentencePieceWorker::append_unit(const Unit& unit, IdList& ids) {
  if (unit.num_bytes == 0) {
    append({&unit.set_or_id, 1}, ids);
    return;
  }
  const std::string_view text(text_.data() + unit.begin, static_cast<size_t>(unit.num_bytes));
  if (!is_cached(unit.num_bytes)) {
    append(merged(text), ids);
    return;
  }
  const UnitCache::Key key(text.data(), text.size());
  const UnitCache::Entry* entry = cache_.find(key, unit.set_or_id);
  if (entry == nullptr) {
    cache_.insert(key, unit.set_or_id, merged(text));
    append(made_, ids);
  } else if (repeats_unknown(entry->ids[0], ids)) {
    append({entry->ids.data(), entry->num_ids}, ids);
  } else {
    ids.append_block(entry->ids, entry->num_ids);
  }
}

std::span<const int32_t> SentencePieceWorker::merged(std::string_view unit) {
  made_.clear();
  merger_.encode(unit, made_);
  return made_;
}

void SentencePieceWorker::append(std::span<const int32_t> added, IdList& ids) const {
  ids.append(added.subspan(repeats_unknown(added.front(), ids) ? 1 : 0));
}

// Unknown characters in a row are one id.
bool SentencePieceWorker::repeats_unknown(int32_t id, const IdList& ids) const {
  return id == tables_.unk_id() && ids.size() > text_begin_ && ids.back() == id;
}

}  // namespace dsm
