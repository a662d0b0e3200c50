#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "core/error.h"
#include "core/pack_index.h"

namespace dsm {

/// The documents of a pack do not stand in it as planned.
class UnfitPackError : public InputError {
 public:
  using InputError::InputError;
};

/// What all packs of an index have in common.
struct PackLayout {
  int64_t capacity = 0;
  int64_t alignment = 1;
  bool splits = false;     ///< documents are cut at the capacity, as concat_split does
  bool truncates = false;  ///< a document longer than the capacity fills a pack of its own
};

/// Throws InputError unless the capacity is in range and a multiple of the alignment.
inline void check_layout(const PackLayout& layout) {
  if (layout.capacity < 1 || layout.capacity > max_pack_capacity || layout.alignment < 1 ||
      layout.capacity % layout.alignment != 0) {
    throw InputError(concat("a pack's capacity must be 1 to ", max_pack_capacity,
                            " and a multiple of the alignment, found ", layout.capacity, " and ",
                            layout.alignment));
  }
}

/// One pack of an index.
template <class Id>
struct PackView {
  std::span<const Id> documents;
  int64_t begin = 0;  ///< first token of the first document that stands here
};

/// The part of a document that stands in a pack: its tokens [begin, begin + length), which take
/// `slots` slots.
template <class Id>
struct PackPiece {
  Id document;
  int64_t begin;
  int64_t length;
  int64_t slots;
};

/// Calls visit(piece) for the pieces of a pack in order and returns the slots they take.
/// `length_of(document)` gives a document's tokens. Throws UnfitPackError where they
/// do not fit the pack: the index was built for other documents.
template <class Id, class LengthOf, class Visit>
int64_t for_each_piece(const PackLayout& layout, const PackView<Id>& pack, LengthOf length_of,
                       Visit visit) {
  int64_t used = 0;
  int64_t begin = pack.begin;
  for (const Id document : pack.documents) {
    const int64_t rest = length_of(document) - begin;
    const int64_t room = layout.capacity - used;
    const bool may_be_cut = layout.splits || (layout.truncates && used == 0);
    if (begin < 0 || rest <= 0 || room <= 0 || (rest > room && !may_be_cut)) {
      throw UnfitPackError(concat("the documents of this pack do not fill it as planned (document ",
                                  document, ", ", rest, " tokens for ", room, " of ",
                                  layout.capacity,
                                  " slots): the pack index was built for other documents"));
    }
    const int64_t length = std::min(rest, room);
    const int64_t slots =
        layout.alignment == 1 ? length : std::min(slots_of(length, layout.alignment), room);
    visit(PackPiece<Id>{document, begin, length, slots});
    used += slots;
    begin = 0;
  }
  return used;
}

}  // namespace dsm
