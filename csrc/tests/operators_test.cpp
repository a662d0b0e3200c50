// The operators' kernels on emulated grids and their CPU loops, against the plain way.

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <set>
#include <vector>

#include "core/dense_mask.h"
#include "core/error.h"
#include "core/packed_metadata.h"
#include "core/random.h"
#include "core/segment_loss.h"
#include "tests/check.h"
#include "tests/emulated_grid.h"
#include "tests/random_packs.h"

namespace {

using dsm::test::random_cu_seqlens;

// Around the widths of vectors, warps and blocks.
constexpr int64_t pack_sizes[] = {0,  1,  2,   3,   4,   5,    15,   16,
                                  17, 63, 127, 128, 129, 1023, 1025, 2600};

size_t index(int64_t i) { return static_cast<size_t>(i); }

int64_t document_of(const std::vector<int32_t>& cu_seqlens, int64_t token_idx) {
  int64_t document = 0;
  while (cu_seqlens[index(document + 1)] <= token_idx) ++document;
  return document;
}

struct MetadataOutputs {
  std::vector<int64_t> position_ids, labels;
  std::vector<int32_t> document_ids, segment_ends;
  std::vector<float> loss_weights;
  int32_t max_seqlen = -1;

  explicit MetadataOutputs(size_t num_tokens)
      : position_ids(num_tokens),
        labels(num_tokens),
        document_ids(num_tokens),
        segment_ends(num_tokens),
        loss_weights(num_tokens) {}

  bool operator==(const MetadataOutputs&) const = default;
};

struct MetadataInputs {
  std::vector<int32_t> cu_seqlens;
  std::vector<int64_t> tokens;
  std::vector<uint8_t> supervised;

  MetadataInputs(dsm::RandomStream& random, int64_t num_tokens)
      : cu_seqlens(random_cu_seqlens(random, num_tokens, 40)) {
    for (int64_t i = 0; i < num_tokens; ++i) {
      tokens.push_back(static_cast<int64_t>(random.below(1'000)));
      supervised.push_back(random.below(3) != 0);
    }
  }

  dsm::PackedMetadataArguments to(MetadataOutputs& outputs) const {
    return {cu_seqlens.data(),
            static_cast<int64_t>(cu_seqlens.size()),
            static_cast<int64_t>(tokens.size()),
            tokens.data(),
            supervised.data(),
            outputs.position_ids.data(),
            outputs.document_ids.data(),
            outputs.segment_ends.data(),
            outputs.labels.data(),
            outputs.loss_weights.data(),
            &outputs.max_seqlen};
  }
};

MetadataOutputs plain_metadata(const MetadataInputs& inputs) {
  MetadataOutputs outputs(inputs.tokens.size());
  outputs.max_seqlen = 0;
  for (size_t d = 0; d + 1 < inputs.cu_seqlens.size(); ++d) {
    outputs.max_seqlen =
        std::max(outputs.max_seqlen, inputs.cu_seqlens[d + 1] - inputs.cu_seqlens[d]);
  }
  for (size_t i = 0; i < inputs.tokens.size(); ++i) {
    const int64_t document = document_of(inputs.cu_seqlens, static_cast<int64_t>(i));
    const int32_t end = inputs.cu_seqlens[index(document + 1)];
    outputs.position_ids[i] = static_cast<int64_t>(i) - inputs.cu_seqlens[index(document)];
    outputs.document_ids[i] = static_cast<int32_t>(document);
    outputs.segment_ends[i] = end;
    outputs.labels[i] = -100;
    if (i + 1 < static_cast<size_t>(end) && inputs.supervised[i + 1] != 0) {
      outputs.labels[i] = inputs.tokens[i + 1];
      outputs.loss_weights[i] = 1;
    }
  }
  return outputs;
}

void metadata_is_the_plain_one_in_the_loop_and_in_the_kernel() {
  dsm::RandomStream random(1);
  for (const int64_t num_tokens : pack_sizes) {
    for (int i = 0; i < 10; ++i) {
      const MetadataInputs inputs(random, num_tokens);
      MetadataOutputs loop(inputs.tokens.size());
      dsm::packed_metadata(inputs.to(loop));
      CHECK(loop == plain_metadata(inputs));
      for (const dsm::test::ThreadOrder order : dsm::test::thread_orders) {
        MetadataOutputs kernel(inputs.tokens.size());
        dsm::test::run_packed_metadata(inputs.to(kernel), order);
        CHECK(kernel == loop);
      }
    }
  }
}

void the_longest_of_more_documents_than_a_block_has_threads_is_found() {
  for (const size_t longest : {size_t{0}, size_t{255}, size_t{256}, size_t{999}}) {
    dsm::RandomStream random(0);
    MetadataInputs inputs(random, 1'004);
    inputs.cu_seqlens = {0};
    for (size_t d = 0; d < 1'000; ++d) {
      inputs.cu_seqlens.push_back(inputs.cu_seqlens.back() + (d == longest ? 5 : 1));
    }
    MetadataOutputs outputs(1'004);
    dsm::test::run_packed_metadata(inputs.to(outputs));
    CHECK(outputs.max_seqlen == 5);
  }
}

void faulty_cu_seqlens_are_errors() {
  for (const std::vector<int32_t>& cu_seqlens :
       {std::vector<int32_t>{0}, {0, 3}, {1, 4}, {0, 3, 2, 4}, {0, -1, 4}, {0, 5, 4}}) {
    dsm::RandomStream random(0);
    MetadataInputs inputs(random, 4);
    inputs.cu_seqlens = cu_seqlens;
    MetadataOutputs outputs(4);
    bool is_error = false;
    try {
      dsm::packed_metadata(inputs.to(outputs));
    } catch (const dsm::InputError&) {
      is_error = true;
    }
    CHECK(is_error);
  }
}

bool attends(const std::vector<int32_t>& cu_seqlens, const dsm::DenseMaskArguments& arguments,
             int64_t query, int64_t column) {
  const int64_t key = arguments.banded ? query - (arguments.row_length - 1) + column : column;
  if (key < 0) return false;
  return document_of(cu_seqlens, query) == document_of(cu_seqlens, key) &&
         (!arguments.causal || key <= query) && std::abs(query - key) < arguments.window;
}

/// Whether loop and kernel give the plain mask, in memory that begins `offset` elements after a
/// multiple of 16 bytes, and write nothing beside it.
template <class Element>
void check_mask(const std::vector<int32_t>& cu_seqlens, dsm::DenseMaskArguments arguments,
                dsm::MaskBits<Element> bits, size_t offset) {
  constexpr Element untouched = 7;
  arguments.cu_seqlens = cu_seqlens.data();
  arguments.num_entries = static_cast<int64_t>(cu_seqlens.size());
  const size_t size = index(arguments.num_tokens * arguments.row_length);
  std::vector<dsm::Chunk> memory((size + offset) * sizeof(Element) / sizeof(dsm::Chunk) + 2);
  Element* begin = reinterpret_cast<Element*>(memory.data());
  Element* end = begin + memory.size() * sizeof(dsm::Chunk) / sizeof(Element);
  Element* mask = begin + offset;
  arguments.mask = mask;
  for (const bool is_kernel : {false, true}) {
    std::fill(begin, end, untouched);
    is_kernel ? dsm::test::run_dense_mask(arguments, bits) : dsm::dense_mask(arguments, bits);
    for (int64_t query = 0; query < arguments.num_tokens; ++query) {
      const Element* row = mask + query * arguments.row_length;
      for (int64_t column = 0; column < arguments.row_length; ++column) {
        CHECK(row[column] ==
              (attends(cu_seqlens, arguments, query, column) ? bits.attended : bits.masked));
      }
    }
    CHECK(std::all_of(begin, mask, [](Element element) { return element == untouched; }));
    CHECK(std::all_of(mask + size, end, [](Element element) { return element == untouched; }));
  }
}

template <class Element>
void check_masks(dsm::RandomStream& random, int64_t num_tokens, dsm::MaskBits<Element> bits) {
  const std::vector<int32_t> cu_seqlens = random_cu_seqlens(random, num_tokens, 8);
  for (const bool causal : {false, true}) {
    for (const int64_t window : {num_tokens, int64_t{1}, int64_t{19}}) {
      const size_t offset = random.below(16 / sizeof(Element));
      check_mask(cu_seqlens, {nullptr, 0, num_tokens, num_tokens, false, causal, window, nullptr},
                 bits, offset);
      if (!causal) continue;
      for (const int64_t row_length : {int64_t{1}, int64_t{13}, int64_t{32}, num_tokens + 9}) {
        check_mask(cu_seqlens, {nullptr, 0, num_tokens, row_length, true, true, window, nullptr},
                   bits, offset);
      }
    }
  }
}

void masks_are_the_plain_ones_in_the_loop_and_in_the_kernel() {
  dsm::RandomStream random(2);
  for (const int64_t num_tokens : {0, 1, 2, 15, 16, 17, 31, 64, 65, 130}) {
    for (int i = 0; i < 3; ++i) {
      check_masks(random, num_tokens, dsm::bool_mask_bits);
      check_masks(random, num_tokens, dsm::bfloat16_mask_bits);
      check_masks(random, num_tokens, dsm::float32_mask_bits);
    }
  }
}

// More rows than a block takes, and rows that one block's threads do not cover at once.
void large_masks_are_the_plain_ones() {
  const std::vector<int32_t> cu_seqlens{0, 3, 3, 700, 1'999, 2'050};
  check_mask(cu_seqlens, {nullptr, 0, 2'050, 2'050, false, true, 2'050, nullptr},
             dsm::float32_mask_bits, 1);
  check_mask(cu_seqlens, {nullptr, 0, 2'050, 40, true, true, 2'050, nullptr}, dsm::bool_mask_bits,
             0);
}

void minus_infinity_stands_where_a_query_does_not_attend() {
  const uint32_t bits = dsm::float32_mask_bits.masked;
  CHECK(std::bit_cast<float>(bits) == -std::numeric_limits<float>::infinity());
  CHECK(dsm::bfloat16_mask_bits.masked == bits >> 16);
}

struct LossOutputs {
  std::vector<double> document_losses, slice_losses;
  std::vector<int64_t> document_counts, slice_counts;

  LossOutputs(int64_t num_documents, int64_t num_slices)
      : document_losses(index(num_documents), -1),
        slice_losses(index(num_slices), -1),
        document_counts(index(num_documents), -1),
        slice_counts(index(num_slices), -1) {}

  bool operator==(const LossOutputs&) const = default;
};

struct LossInputs {
  std::vector<int32_t> cu_seqlens, slice_ids;
  std::vector<float> token_losses, loss_weights;
  int64_t num_columns, num_slices;

  /// Losses are multiples of 1 / 1,024: any order of additions gives the same sum.
  LossInputs(dsm::RandomStream& random, int64_t num_tokens, int64_t max_documents)
      : cu_seqlens(random_cu_seqlens(random, num_tokens, max_documents)),
        num_columns(static_cast<int64_t>(random.below(4))),
        num_slices(static_cast<int64_t>(random.below(6))) {
    for (int64_t i = 0; i < num_tokens; ++i) {
      const float weight = static_cast<float>(random.below(4)) / 2 - 0.5f;
      const float loss = static_cast<float>(random.below(10'000)) / 1'024;
      loss_weights.push_back(weight);
      token_losses.push_back(weight > 0 ? loss : std::numeric_limits<float>::quiet_NaN());
    }
    for (int64_t i = 0; i < num_documents() * num_columns; ++i) {
      slice_ids.push_back(
          static_cast<int32_t>(random.below(static_cast<uint64_t>(num_slices) + 1)) - 1);
    }
  }

  int64_t num_documents() const { return static_cast<int64_t>(cu_seqlens.size()) - 1; }

  LossOutputs outputs() const { return {num_documents(), num_slices}; }

  dsm::SegmentLossArguments to(LossOutputs& outputs) const {
    return {token_losses.data(),
            loss_weights.data(),
            static_cast<int64_t>(token_losses.size()),
            cu_seqlens.data(),
            num_documents(),
            slice_ids.data(),
            num_columns,
            num_slices,
            outputs.document_losses.data(),
            outputs.document_counts.data(),
            outputs.slice_losses.data(),
            outputs.slice_counts.data()};
  }
};

LossOutputs plain_losses(const LossInputs& inputs) {
  LossOutputs outputs = inputs.outputs();
  std::fill(outputs.slice_losses.begin(), outputs.slice_losses.end(), 0);
  std::fill(outputs.slice_counts.begin(), outputs.slice_counts.end(), 0);
  for (size_t d = 0; d < outputs.document_losses.size(); ++d) {
    double loss = 0;
    int64_t count = 0;
    for (auto i = index(inputs.cu_seqlens[d]); i < index(inputs.cu_seqlens[d + 1]); ++i) {
      if (inputs.loss_weights[i] <= 0) continue;
      loss += double{inputs.token_losses[i]} * double{inputs.loss_weights[i]};
      ++count;
    }
    outputs.document_losses[d] = loss;
    outputs.document_counts[d] = count;
    const auto columns = inputs.slice_ids.begin() + static_cast<int64_t>(d) * inputs.num_columns;
    const std::set<int32_t> slices(columns, columns + inputs.num_columns);
    for (const int32_t slice : slices) {
      if (slice < 0) continue;
      outputs.slice_losses[index(slice)] += loss;
      outputs.slice_counts[index(slice)] += count;
    }
  }
  return outputs;
}

void losses_are_the_plain_ones_in_the_loop_and_in_the_kernels() {
  dsm::RandomStream random(3);
  for (const int64_t num_tokens : pack_sizes) {
    for (const int64_t max_documents : {1, 4, 40, 700}) {
      const LossInputs inputs(random, num_tokens, max_documents);
      LossOutputs loop = inputs.outputs();
      dsm::segment_loss(inputs.to(loop));
      CHECK(loop == plain_losses(inputs));
      for (const dsm::test::ThreadOrder order : dsm::test::thread_orders) {
        LossOutputs kernel = inputs.outputs();
        dsm::test::run_segment_loss(inputs.to(kernel), order);
        CHECK(kernel == loop);
      }
    }
  }
}

// Losses of many sizes, whose sum depends on the order.
void the_loop_and_the_kernels_add_in_one_order() {
  dsm::RandomStream random(4);
  for (const int64_t max_documents : {1, 4, 400, 1'500}) {
    for (int i = 0; i < 10; ++i) {
      LossInputs inputs(random, 2'600, max_documents);
      for (float& loss : inputs.token_losses) {
        loss = std::ldexp(static_cast<float>(random.below(1 << 24)),
                          static_cast<int>(random.below(90)));
      }
      LossOutputs loop = inputs.outputs();
      dsm::segment_loss(inputs.to(loop));
      for (const dsm::test::ThreadOrder order : dsm::test::thread_orders) {
        LossOutputs kernel = inputs.outputs();
        dsm::test::run_segment_loss(inputs.to(kernel), order);
        CHECK(kernel == loop);
      }
    }
  }
}

void slice_ids_out_of_range_are_errors_in_the_loop_and_ignored_in_the_kernels() {
  dsm::RandomStream random(5);
  LossInputs inputs(random, 10, 5);
  inputs.num_columns = 1;
  inputs.num_slices = 2;
  for (const int32_t faulty : {-2, 2, std::numeric_limits<int32_t>::max()}) {
    inputs.slice_ids.assign(index(inputs.num_documents()), faulty);
    LossOutputs outputs = inputs.outputs();
    bool is_error = false;
    try {
      dsm::segment_loss(inputs.to(outputs));
    } catch (const dsm::InputError&) {
      is_error = true;
    }
    CHECK(is_error);
    dsm::test::run_segment_loss(inputs.to(outputs));
    CHECK(outputs.slice_counts == std::vector<int64_t>(2));
  }
}

}  // namespace

int main() {
  metadata_is_the_plain_one_in_the_loop_and_in_the_kernel();
  the_longest_of_more_documents_than_a_block_has_threads_is_found();
  faulty_cu_seqlens_are_errors();
  masks_are_the_plain_ones_in_the_loop_and_in_the_kernel();
  large_masks_are_the_plain_ones();
  minus_infinity_stands_where_a_query_does_not_attend();
  losses_are_the_plain_ones_in_the_loop_and_in_the_kernels();
  the_loop_and_the_kernels_add_in_one_order();
  slice_ids_out_of_range_are_errors_in_the_loop_and_ignored_in_the_kernels();
  return 0;
}
