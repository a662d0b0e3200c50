#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "core/sentencepiece_tables.h"

namespace dsm {

/// Turns units of text into ids by the model's merges: the best score first, of equals the
/// leftmost. n log n for a unit of n characters. Keeps its memory between units; for one thread.
class SentencePieceMerger {
 public:
  explicit SentencePieceMerger(const SentencePieceTables& tables) : tables_(tables) {}

  /// Adds the ids of `unit`, which holds no user-defined symbol, to an empty list; of unknown
  /// characters in a row one. utf8_max_bytes must be readable behind the unit's end.
  void encode(std::string_view unit, std::vector<int32_t>& ids);

 private:
  // A run of characters that has become one symbol; the list runs over those that are left.
  struct Node {
    int32_t begin;
    int32_t end;
    int32_t previous;
    int32_t next;
    int32_t symbol;
  };

  struct Merge {
    float score;
    int32_t left;    // a node
    int32_t middle;  // where it ended
    int32_t end;     // where its successor ended
    int32_t merged;

    // For std::push_heap: whether `other` comes first.
    bool operator<(const Merge& other) const {
      return score < other.score || (score == other.score && left > other.left);
    }
  };

  void split(std::string_view unit);
  void propose(int32_t left);
  bool is_stale(const Merge& merge) const;
  void apply(const Merge& merge);
  void append_ids(std::string_view text, int32_t symbol, std::vector<int32_t>& ids) const;

  const SentencePieceTables& tables_;
  std::vector<Node> nodes_;
  std::vector<Merge> heap_;
};

}  // namespace dsm
