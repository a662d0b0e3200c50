#pragma once

#include <cstdint>

#include "core/document_shuffle.h"

namespace dsm {

// How a stream of documents becomes packs: steps for visit_documents. Each writes CSR arrays that
// have room for what comes, one entry of each beyond the end included: to go without branches,
// which at one pack in a dozen documents are hard to predict, a step writes where a pack would
// begin whether one does or not.

/// A pack closes when the next document does not fit. Offsets and Documents are pointers, or what
/// can be indexed like one.
template <class Id, class Offsets = int64_t*, class Documents = Id*>
class NextFitStep {
 public:
  NextFitStep(int64_t capacity, Offsets offsets, Documents documents)
      : capacity_(capacity), offsets_(offsets), documents_(documents) {}

  [[gnu::always_inline]] void operator()(uint64_t entry) {
    const int64_t slots = StreamEntry::slots(entry);
    const bool opens = slots > room_;
    offsets_[num_packs_] = num_pieces_;
    num_packs_ += opens;
    room_ = (opens ? capacity_ : room_) - slots;
    documents_[num_pieces_++] = static_cast<Id>(StreamEntry::document(entry));
  }

  int64_t num_packs() const { return num_packs_; }
  int64_t num_pieces() const { return num_pieces_; }

 private:
  int64_t capacity_;
  int64_t room_ = 0;
  int64_t num_packs_ = 0;
  int64_t num_pieces_ = 0;
  Offsets offsets_;
  Documents documents_;
};

/// Every pack but the last is filled to its end; a document that lies across is cut. No document
/// is longer than a pack.
template <class Id>
class CutStep {
 public:
  CutStep(int64_t capacity, int64_t* offsets, Id* documents, int32_t* begins)
      : capacity_(capacity), offsets_(offsets), documents_(documents), begins_(begins) {}

  [[gnu::always_inline]] void operator()(uint64_t entry) {
    const int64_t slots = StreamEntry::slots(entry);
    const Id document = static_cast<Id>(StreamEntry::document(entry));
    const int64_t rest = room_ - slots;
    const bool opens = rest < 0;
    const bool cuts = opens & (room_ > 0);
    documents_[num_pieces_] = document;
    num_pieces_ += cuts;
    documents_[num_pieces_] = document;
    offsets_[num_packs_] = num_pieces_++;
    begins_[num_packs_] = static_cast<int32_t>(room_);
    num_packs_ += opens;
    room_ = rest + (opens ? capacity_ : 0);
  }

  int64_t num_packs() const { return num_packs_; }
  int64_t num_pieces() const { return num_pieces_; }

 protected:
  int64_t capacity_;
  int64_t room_ = 0;
  int64_t num_packs_ = 0;
  int64_t num_pieces_ = 0;
  int64_t* offsets_;
  Id* documents_;
  int32_t* begins_;
};

/// As CutStep, for documents of any length.
template <class Id>
class LongCutStep : public CutStep<Id> {
 public:
  using CutStep<Id>::CutStep;

  void operator()(uint64_t entry) {
    int64_t left = StreamEntry::slots(entry);
    const Id document = static_cast<Id>(StreamEntry::document(entry));
    if (this->room_ > 0) {
      this->documents_[this->num_pieces_++] = document;
    }
    const int64_t slots = left;
    for (left -= this->room_; left > 0; left -= this->capacity_) {
      this->offsets_[this->num_packs_] = this->num_pieces_;
      this->begins_[this->num_packs_++] = static_cast<int32_t>(slots - left);
      this->documents_[this->num_pieces_++] = document;
    }
    this->room_ = -left;
  }
};

/// Passes on the documents that are not left out.
template <class Step>
class SkipLeftOut {
 public:
  explicit SkipLeftOut(const Step& step) : step_(step) {}

  void operator()(uint64_t entry) {
    if (StreamEntry::slots(entry) > 0) step_(entry);
  }

  int64_t num_packs() const { return step_.num_packs(); }
  int64_t num_pieces() const { return step_.num_pieces(); }

 private:
  Step step_;
};

}  // namespace dsm
