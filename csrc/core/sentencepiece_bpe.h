#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string_view>
#include <vector>

#include "core/buffer.h"
#include "core/sentencepiece_tables.h"

namespace dsm {

class SentencePieceWorker;

/// The ids of text i are ids[offsets[i], offsets[i + 1]).
struct EncodedTexts {
  Buffer<int32_t> ids;
  Buffer<int64_t> offsets;
};

/// Encodes text as the sentencepiece library encodes it by a BPE model with the identity
/// normaliser, id for id, many times faster: a text is cut where no merge crosses, and the ids of
/// the units between the cuts are remembered. Safe for any number of threads at a time.
class SentencePieceBpe {
 public:
  /// `dummy_prefix`: the model puts a space before a text. Raises InputError where the pieces are
  /// not covered, its text a reason to use the library.
  SentencePieceBpe(std::span<const SentencePiece> pieces, bool byte_fallback, bool dummy_prefix);
  ~SentencePieceBpe();

  /// The texts are valid UTF-8; other bytes give some ids and do no harm. A `continuation` has text
  /// before it and gets no space of the model's. The same ids on any number of threads.
  EncodedTexts encode_batch(std::span<const std::string_view> texts, bool continuation,
                            int threads) const;

 private:
  class Lease;

  SentencePieceTables tables_;
  bool dummy_prefix_;
  mutable std::mutex mutex_;
  mutable std::vector<std::unique_ptr<SentencePieceWorker>>
      idle_;  // their caches stay warm between calls
};

}  // namespace dsm
