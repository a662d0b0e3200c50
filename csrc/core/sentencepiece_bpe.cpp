#include "core/sentencepiece_bpe.h"

#include <algorithm>
#include <utility>

#include "core/error.h"
#include "core/parallel.h"
#include "core/sentencepiece_worker.h"

namespace dsm {
namespace {

// Enough for a thread to be worth its start, and few enough for the last not to be waited for.
constexpr int64_t part_bytes = 1 << 17;

// Where each part's texts begin, and the end of the last: about part_bytes each.
std::vector<size_t> part_begins(std::span<const std::string_view> texts) {
  std::vector<size_t> begins{0};
  int64_t bytes = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    bytes += static_cast<int64_t>(texts[i].size()) + 1;
    if (bytes >= part_bytes || i + 1 == texts.size()) {
      begins.push_back(i + 1);
      bytes = 0;
    }
  }
  return begins;
}

}  // namespace

// A worker for as long as the lease lives; afterwards the next lease has it.
class SentencePieceBpe::Lease {
 public:
  explicit Lease(const SentencePieceBpe& encoder) : encoder_(encoder) {
    {
      const std::lock_guard lock(encoder.mutex_);
      if (!encoder.idle_.empty()) {
        worker_ = std::move(encoder.idle_.back());
        encoder.idle_.pop_back();
      }
    }
    if (!worker_) worker_ = std::make_unique<SentencePieceWorker>(encoder.tables_);
  }
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;
  ~Lease() {
    const std::lock_guard lock(encoder_.mutex_);
    encoder_.idle_.push_back(std::move(worker_));
  }

  SentencePieceWorker& worker() { return *worker_; }

 private:
  const SentencePieceBpe& encoder_;
  std::unique_ptr<SentencePieceWorker> worker_;
};

SentencePieceBpe::SentencePieceBpe(std::span<const SentencePiece> pieces, bool byte_fallback,
                                   bool dummy_prefix)
    : tables_(pieces, byte_fallback), dummy_prefix_(dummy_prefix) {}

SentencePieceBpe::~SentencePieceBpe() = default;

EncodedTexts SentencePieceBpe::encode_batch(std::span<const std::string_view> texts,
                                            bool continuation, int threads) const {
  if (threads < 1) throw InputError(concat("encoding on ", threads, " threads"));
  const bool prefix = dummy_prefix_ && !continuation;
  const std::vector<size_t> begins = part_begins(texts);
  const auto parts = static_cast<int64_t>(begins.size()) - 1;
  std::vector<IdList> ids(static_cast<size_t>(parts));
  EncodedTexts encoded{Buffer<int32_t>(0), Buffer<int64_t>(static_cast<int64_t>(texts.size()) + 1)};
  Buffer<int64_t>& offsets = encoded.offsets;
  for_each_part(threads, parts, [&](int64_t part) {
    Lease lease(*this);
    const auto p = static_cast<size_t>(part);
    for (size_t i = begins[p]; i < begins[p + 1]; ++i) {
      lease.worker().encode(texts[i], prefix, ids[p]);
      offsets[static_cast<int64_t>(i) + 1] = ids[p].size();
    }
  });
  std::vector<int64_t> firsts{0};  // of each part's ids among all
  for (const IdList& part : ids) firsts.push_back(firsts.back() + part.size());
  encoded.ids = Buffer<int32_t>(firsts.back());
  offsets[0] = 0;
  for_each_part(threads, parts, [&](int64_t part) {
    const auto p = static_cast<size_t>(part);
    std::ranges::copy(ids[p].span(), encoded.ids.data() + firsts[p]);
    for (size_t i = begins[p]; i < begins[p + 1]; ++i) {
      offsets[static_cast<int64_t>(i) + 1] += firsts[p];
    }
    ids[p] = IdList();
  });
  return encoded;
}

}  // namespace dsm
