// The bytes are a pack and options. What the operators' kernels do on an emulated grid is what the
// CPU loops do where cu_seqlens is sound; where its entries are any within the pack, the kernels
// stay inside their arrays, which the sanitizers watch.

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/dense_mask.h"
#include "core/packed_metadata.h"
#include "core/segment_loss.h"
#include "fuzz/fuzz_target.h"
#include "tests/emulated_grid.h"

namespace dsm::fuzz {
namespace {

constexpr size_t most_tokens = 300;  // more than a document has lanes
constexpr size_t most_entries = 12;
constexpr size_t most_mask_tokens = 40;

/// The bytes, one value after the other; zeros after their end.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  template <class Value>
  Value take() {
    Value value{};
    const size_t size = std::min(size_, sizeof value);
    if (size > 0) std::memcpy(&value, data_, size);
    data_ += size;
    size_ -= size;
    return value;
  }

  size_t below(size_t bound) { return take<uint16_t>() % bound; }

  template <class Value>
  std::vector<Value> take_many(size_t n) {
    std::vector<Value> values(n);
    for (Value& value : values) value = take<Value>();
    return values;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

/// Two or more entries within the pack, sound or as they come.
std::vector<int32_t> take_cu_seqlens(Bytes& bytes, size_t num_tokens, bool is_sound) {
  std::vector<int32_t> entries(2 + bytes.below(most_entries));
  for (int32_t& entry : entries) entry = static_cast<int32_t>(bytes.below(num_tokens + 1));
  if (is_sound) {
    entries.front() = 0;
    entries.back() = static_cast<int32_t>(num_tokens);
    std::sort(entries.begin(), entries.end());
  }
  return entries;
}

/// Runs the kernel, and the loop, which may refuse what is not sound; else both agree.
template <class Outputs, class RunKernel, class RunLoop>
void compare(const Outputs& empty, bool is_sound, const RunKernel& run_kernel,
             const RunLoop& run_loop) {
  Outputs kernel = empty, loop = empty;
  run_kernel(kernel);
  const bool is_taken = succeeds([&] { run_loop(loop); });
  FUZZ_CHECK(is_taken || !is_sound);
  if (is_taken) FUZZ_CHECK(kernel == loop);
}

struct MetadataOutputs {
  std::vector<int64_t> position_ids, labels;
  std::vector<int32_t> document_ids, segment_ends;
  std::vector<float> loss_weights;
  int32_t max_seqlen = -1;

  bool operator==(const MetadataOutputs&) const = default;
};

void check_packed_metadata(Bytes& bytes, bool is_sound) {
  const size_t n = bytes.below(most_tokens + 1);
  const std::vector<int32_t> cu_seqlens = take_cu_seqlens(bytes, n, is_sound);
  const auto supervised = bytes.take_many<uint8_t>(n);
  const auto tokens = bytes.take_many<int64_t>(n);
  const auto arguments = [&](MetadataOutputs& outputs) {
    return PackedMetadataArguments{
        cu_seqlens.data(),           static_cast<int64_t>(cu_seqlens.size()),
        static_cast<int64_t>(n),     tokens.data(),
        supervised.data(),           outputs.position_ids.data(),
        outputs.document_ids.data(), outputs.segment_ends.data(),
        outputs.labels.data(),       outputs.loss_weights.data(),
        &outputs.max_seqlen};
  };
  const std::vector<int64_t> longs(n);
  const std::vector<int32_t> ints(n);
  compare(
      MetadataOutputs{longs, longs, ints, ints, std::vector<float>(n)}, is_sound,
      [&](MetadataOutputs& outputs) { test::run_packed_metadata(arguments(outputs)); },
      [&](MetadataOutputs& outputs) { packed_metadata(arguments(outputs)); });
}

template <class Element>
void check_dense_mask(Bytes& bytes, bool is_sound, MaskBits<Element> bits) {
  const size_t n = bytes.below(most_mask_tokens + 1);
  const std::vector<int32_t> cu_seqlens = take_cu_seqlens(bytes, n, is_sound);
  DenseMaskArguments arguments{cu_seqlens.data(),
                               static_cast<int64_t>(cu_seqlens.size()),
                               static_cast<int64_t>(n),
                               static_cast<int64_t>(n),
                               bytes.below(2) == 1,
                               true,
                               static_cast<int64_t>(1 + bytes.below(n + 2)),
                               nullptr};
  if (arguments.banded) {
    arguments.row_length = static_cast<int64_t>(1 + bytes.below(50));
  } else {
    arguments.causal = bytes.below(2) == 1;
  }
  const size_t offset = bytes.below(16 / sizeof(Element));  // the rows stand anywhere
  const auto into = [&](std::vector<Element>& mask) {
    DenseMaskArguments whole = arguments;
    whole.mask = mask.data() + offset;
    return whole;
  };
  const size_t size = n * static_cast<size_t>(arguments.row_length);
  compare(
      std::vector<Element>(offset + size, 7), is_sound,
      [&](std::vector<Element>& mask) { test::run_dense_mask(into(mask), bits); },
      [&](std::vector<Element>& mask) { dense_mask(into(mask), bits); });
}

struct LossOutputs {
  std::vector<double> document_losses, slice_losses;
  std::vector<int64_t> document_counts, slice_counts;

  bool operator==(const LossOutputs& other) const {
    // Which NaN comes of two is open.
    const auto is_same = [](double a, double b) { return a == b || (a != a && b != b); };
    return std::ranges::equal(document_losses, other.document_losses, is_same) &&
           std::ranges::equal(slice_losses, other.slice_losses, is_same) &&
           document_counts == other.document_counts && slice_counts == other.slice_counts;
  }
};

void check_segment_loss(Bytes& bytes, bool is_sound) {
  const size_t n = bytes.below(most_tokens + 1);
  const std::vector<int32_t> cu_seqlens = take_cu_seqlens(bytes, n, is_sound);
  const size_t num_documents = cu_seqlens.size() - 1;
  const size_t num_columns = bytes.below(4);
  const size_t num_slices = bytes.below(6);
  std::vector<int32_t> slice_ids(num_documents * num_columns);
  for (int32_t& slice : slice_ids) {
    slice =
        is_sound ? static_cast<int32_t>(bytes.below(num_slices + 1)) - 1 : bytes.take<int32_t>();
  }
  const auto loss_weights = bytes.take_many<float>(n);
  const auto token_losses = bytes.take_many<float>(n);
  const auto arguments = [&](LossOutputs& outputs) {
    return SegmentLossArguments{token_losses.data(),
                                loss_weights.data(),
                                static_cast<int64_t>(n),
                                cu_seqlens.data(),
                                static_cast<int64_t>(num_documents),
                                slice_ids.data(),
                                static_cast<int64_t>(num_columns),
                                static_cast<int64_t>(num_slices),
                                outputs.document_losses.data(),
                                outputs.document_counts.data(),
                                outputs.slice_losses.data(),
                                outputs.slice_counts.data()};
  };
  compare(
      LossOutputs{std::vector<double>(num_documents), std::vector<double>(num_slices),
                  std::vector<int64_t>(num_documents), std::vector<int64_t>(num_slices)},
      is_sound, [&](LossOutputs& outputs) { test::run_segment_loss(arguments(outputs)); },
      [&](LossOutputs& outputs) { segment_loss(arguments(outputs)); });
}

}  // namespace
}  // namespace dsm::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace dsm::fuzz;
  Bytes bytes(data, size);
  const size_t op = bytes.below(5);
  const bool is_sound = bytes.below(4) != 0;
  if (op == 0) check_packed_metadata(bytes, is_sound);
  if (op == 1) check_dense_mask(bytes, is_sound, dsm::bool_mask_bits);
  if (op == 2) check_dense_mask(bytes, is_sound, dsm::bfloat16_mask_bits);
  if (op == 3) check_dense_mask(bytes, is_sound, dsm::float32_mask_bits);
  if (op == 4) check_segment_loss(bytes, is_sound);
  return 0;
}
