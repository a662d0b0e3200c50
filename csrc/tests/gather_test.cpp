// Gathering under sanitizers: every packing of a small dataset on several threads, token by token.

#include "core/gather.h"

#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <numeric>
#include <vector>

#include "core/error.h"
#include "core/pack_index.h"
#include "core/pack_statistics.h"
#include "core/random.h"
#include "tests/check.h"

namespace {

constexpr int64_t num_documents = 400;
constexpr int32_t pad_id = 7;

/// Documents whose token t of document d is 100 + (d + t) % 60'000, in Megatron's files.
class Files {
 public:
  explicit Files(const std::vector<int32_t>& lengths)
      : prefix_(std::filesystem::temp_directory_path() /
                ("dsm_gather_test_" + std::to_string(::getpid()))) {
    std::ofstream bin(prefix_.string() + ".bin", std::ios::binary);
    std::ofstream idx(prefix_.string() + ".idx", std::ios::binary);
    const auto put = [&](auto value) {
      idx.write(reinterpret_cast<const char*>(&value), sizeof(value));
    };
    idx.write("MMIDIDX\0\0", 9);
    put(uint64_t{1});
    put(uint8_t{8});
    put(uint64_t{lengths.size()});
    put(uint64_t{lengths.size() + 1});
    for (const int32_t length : lengths) put(length);
    int64_t pointer = 0;
    for (size_t d = 0; d < lengths.size(); ++d) {
      put(pointer);
      pointer += 2 * lengths[d];
      for (int32_t t = 0; t < lengths[d]; ++t) {
        const auto token = static_cast<uint16_t>(token_of(static_cast<int64_t>(d), t));
        bin.write(reinterpret_cast<const char*>(&token), sizeof(token));
      }
    }
    for (size_t d = 0; d <= lengths.size(); ++d) put(static_cast<int64_t>(d));
  }
  ~Files() {
    std::filesystem::remove(prefix_.string() + ".bin");
    std::filesystem::remove(prefix_.string() + ".idx");
  }
  const std::filesystem::path& prefix() const { return prefix_; }

  static int64_t token_of(int64_t document, int64_t t) { return 100 + (document + t) % 60'000; }

 private:
  std::filesystem::path prefix_;
};

template <class Index>
struct Buffers {
  explicit Buffers(size_t capacity)
      : tokens(capacity),
        labels(capacity),
        position_ids(capacity),
        loss_weights(capacity),
        document_ids(capacity),
        cu_seqlens(num_documents + 2) {}
  dsm::PackedBatchView<Index> view() {
    return {tokens, labels, loss_weights, position_ids, document_ids, cu_seqlens};
  }
  std::vector<Index> tokens, labels, position_ids;
  std::vector<float> loss_weights;
  std::vector<int32_t> document_ids, cu_seqlens;
};

/// Every second token of a document is a span of its own, from its first on.
struct Spans {
  explicit Spans(const std::vector<int32_t>& lengths) {
    offsets.push_back(0);
    for (const int32_t length : lengths) {
      for (int32_t t = 0; t < length; t += 2) spans.insert(spans.end(), {t, t + 1});
      offsets.push_back(static_cast<int64_t>(spans.size() / 2));
    }
  }
  std::vector<int64_t> offsets;
  std::vector<int32_t> spans;
};

template <class Index>
void check_pack(const dsm::GatherSource& source, const std::vector<int32_t>& lengths,
                const dsm::PackView<int32_t>& pack, const Buffers<Index>& buffers,
                const dsm::PackedCounts& counts) {
  size_t slot = 0;
  int64_t num_supervised = 0;
  int32_t number = 0;
  const auto length_of = [&](int32_t d) -> int64_t { return lengths[static_cast<size_t>(d)]; };
  dsm::for_each_piece(source.layout, pack, length_of, [&](const dsm::PackPiece<int32_t>& piece) {
    const int64_t end = piece.begin + piece.length;
    const int64_t known = source.layout.splits ? length_of(piece.document) : end;
    CHECK(buffers.cu_seqlens[static_cast<size_t>(number)] == static_cast<int32_t>(slot));
    for (int64_t i = 0; i < piece.slots; ++i, ++slot) {
      const int64_t t = piece.begin + i;
      const bool is_token = t < end;
      const bool has_label = is_token && t + 1 < known && (t + 1) % 2 == 0;
      CHECK(buffers.tokens[slot] == (is_token ? Files::token_of(piece.document, t) : pad_id));
      CHECK(buffers.labels[slot] ==
            (has_label ? Files::token_of(piece.document, t + 1) : dsm::no_label));
      CHECK(buffers.loss_weights[slot] == (has_label ? 1.0f : 0.0f));
      CHECK(buffers.position_ids[slot] == i && buffers.document_ids[slot] == number);
      num_supervised += has_label;
    }
    ++number;
  });
  for (int64_t i = 0; slot < buffers.tokens.size(); ++i, ++slot) {
    CHECK(buffers.tokens[slot] == pad_id && buffers.labels[slot] == dsm::no_label);
    CHECK(buffers.position_ids[slot] == i && buffers.document_ids[slot] == number);
  }
  CHECK(counts.num_supervised == num_supervised);
}

template <class Index>
void gather_all(const dsm::IndexedDataset& dataset, const std::vector<int32_t>& lengths,
                const dsm::PackPlan& plan, int threads) {
  const Spans spans(lengths);
  const auto packs = dsm::build_packs<int32_t>(plan);
  const dsm::GatherSource source{dataset,
                                 {spans.offsets, spans.spans},
                                 {plan.capacity, plan.alignment, packs.begins.size() > 0,
                                  plan.overlong == dsm::OverlongPolicy::truncate},
                                 60'200,
                                 pad_id};
  dsm::check_coverage<int32_t>(lengths, source.layout, packs.offsets.span(), packs.documents.span(),
                               packs.begins.span(), packs.ledger);
  std::vector<dsm::PackView<int32_t>> views;
  std::vector<Buffers<Index>> buffers;
  std::vector<dsm::PackedBatchView<Index>> outs;
  const int64_t num_packs = packs.offsets.size() - 1;
  for (int64_t p = 0; p < num_packs; ++p) {
    const auto first = static_cast<size_t>(packs.offsets[p]);
    const auto count = static_cast<size_t>(packs.offsets[p + 1]) - first;
    views.push_back(
        {packs.documents.span().subspan(first, count), source.layout.splits ? packs.begins[p] : 0});
    buffers.emplace_back(static_cast<size_t>(plan.capacity));
  }
  for (auto& buffer : buffers) outs.push_back(buffer.view());
  const auto counts = dsm::gather_packs<int32_t, Index>(source, views, outs, threads);
  for (size_t p = 0; p < views.size(); ++p) {
    check_pack(source, lengths, views[p], buffers[p], counts[p]);
  }
}

void every_packing_is_gathered_token_by_token() {
  std::vector<int32_t> lengths(num_documents);
  dsm::RandomStream random(4);
  for (int32_t& length : lengths) length = static_cast<int32_t>(random.below(90)) + 1;
  const Files files(lengths);
  const dsm::IndexedDataset dataset(files.prefix());
  for (uint32_t strategy = 0; strategy <= 4; ++strategy) {
    for (const int64_t alignment : {1, 8}) {
      const dsm::PackPlan plan{.lengths = lengths,
                               .capacity = 64,
                               .strategy = static_cast<dsm::PackStrategy>(strategy),
                               .seed = 1,
                               .alignment = alignment,
                               .overlong = dsm::OverlongPolicy::truncate,
                               .cost = {1, 1}};
      gather_all<int32_t>(dataset, lengths, plan, 1);
      gather_all<int64_t>(dataset, lengths, plan, 3);
    }
  }
}

void a_fault_on_a_thread_is_thrown_once_all_have_stopped() {
  const std::vector<int32_t> lengths(100, 10);
  const Files files(lengths);
  const dsm::IndexedDataset dataset(files.prefix());
  const Spans spans(lengths);
  const dsm::GatherSource source{
      dataset, {spans.offsets, spans.spans}, {.capacity = 10}, 60'200, pad_id};
  std::vector<int32_t> documents(100);
  std::iota(documents.begin(), documents.end(), 0);
  documents[70] = 100;
  std::vector<dsm::PackView<int32_t>> views;
  std::vector<Buffers<int64_t>> buffers(100, Buffers<int64_t>(10));
  std::vector<dsm::PackedBatchView<int64_t>> outs;
  for (size_t p = 0; p < 100; ++p) {
    views.push_back({std::span<const int32_t>(documents).subspan(p, 1), 0});
    outs.push_back(buffers[p].view());
  }
  bool is_refused = false;
  try {
    dsm::gather_packs<int32_t, int64_t>(source, views, outs, 4);
  } catch (const dsm::InputError&) {
    is_refused = true;
  }
  CHECK(is_refused);
}

}  // namespace

int main() {
  every_packing_is_gathered_token_by_token();
  a_fault_on_a_thread_is_thrown_once_all_have_stopped();
  std::puts("gather_test: all hold");
  return 0;
}
