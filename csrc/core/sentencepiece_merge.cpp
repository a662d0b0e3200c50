#include "core/sentencepiece_merge.h"

#include <algorithm>

#include "core/utf8.h"

namespace dsm {
namespace {

constexpr int32_t no_node = -1;
constexpr size_t kept_nodes = size_t{1} << 16;  // of a long unit's memory

}  // namespace

void SentencePieceMerger::encode(std::string_view unit, std::vector<int32_t>& ids) {
  split(unit);
  heap_.clear();
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(nodes_.size()); ++i) propose(i);
  while (!heap_.empty()) {
    std::pop_heap(heap_.begin(), heap_.end());
    const Merge merge = heap_.back();
    heap_.pop_back();
    if (!is_stale(merge)) apply(merge);
  }
  for (int32_t i = nodes_.empty() ? no_node : 0; i != no_node;) {
    const Node& node = nodes_[static_cast<size_t>(i)];
    append_ids(
        unit.substr(static_cast<size_t>(node.begin), static_cast<size_t>(node.end - node.begin)),
        node.symbol, ids);
    i = node.next;
  }
  if (nodes_.capacity() > kept_nodes) nodes_ = {};
  if (heap_.capacity() > kept_nodes) heap_ = {};
}

void SentencePieceMerger::split(std::string_view unit) {
  nodes_.clear();
  const auto size = static_cast<int32_t>(unit.size());
  for (int32_t begin = 0, i = 0; begin < size; ++i) {
    const char* at = unit.data() + begin;
    const int32_t bytes = utf8_bytes(static_cast<uint8_t>(*at));
    const int32_t end = std::min(size, begin + bytes);
    nodes_.push_back({begin, end, i - 1, i + 1, tables_.character_symbol(decode_utf8(at))});
    begin = end;
  }
  if (!nodes_.empty()) nodes_.back().next = no_node;
}

void SentencePieceMerger::propose(int32_t left) {
  if (left == no_node) return;
  const Node& node = nodes_[static_cast<size_t>(left)];
  if (node.next == no_node) return;
  const Node& next = nodes_[static_cast<size_t>(node.next)];
  if (node.symbol < 0 || next.symbol < 0) return;
  const int32_t merged = tables_.merged(node.symbol, next.symbol);
  if (merged < 0) return;
  heap_.push_back({tables_.score(merged), left, node.end, next.end, merged});
  std::push_heap(heap_.begin(), heap_.end());
}

bool SentencePieceMerger::is_stale(const Merge& merge) const {
  const Node& left = nodes_[static_cast<size_t>(merge.left)];
  // A node that went into its predecessor ends where it begins.
  if (left.end != merge.middle || left.next == no_node) return true;
  return nodes_[static_cast<size_t>(left.next)].end != merge.end;
}

void SentencePieceMerger::apply(const Merge& merge) {
  Node& left = nodes_[static_cast<size_t>(merge.left)];
  Node& right = nodes_[static_cast<size_t>(left.next)];
  left.end = right.end;
  left.symbol = merge.merged;
  left.next = right.next;
  right.end = right.begin;
  if (left.next != no_node) nodes_[static_cast<size_t>(left.next)].previous = merge.left;
  propose(left.previous);
  propose(merge.left);
}

void SentencePieceMerger::append_ids(std::string_view text, int32_t symbol,
                                     std::vector<int32_t>& ids) const {
  if (tables_.is_piece(symbol)) {
    ids.push_back(symbol);
  } else if (!tables_.byte_fallback()) {
    const bool repeats = !ids.empty() && ids.back() == tables_.unk_id();
    if (!repeats) ids.push_back(tables_.unk_id());
  } else {
    // The model knows the space by its mark only.
    for (const char c : text == " " ? space_mark : text) {
      ids.push_back(tables_.byte_id(static_cast<uint8_t>(c)));
    }
  }
}

}  // namespace dsm
