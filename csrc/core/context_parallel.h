#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/kernel_body.h"
#include "core/packed_metadata.h"

// How the tokens of a pack are dealt to the ranks of context parallelism. Each document is padded
// to a multiple of 2 * cp_size and cut into so many equal chunks; rank r holds chunks r and 2 *
// cp_size - 1 - r, document after document, which gives every rank the same share of causal
// attention. It is the order of Transformer Engine's thd_get_partitioned_indices. The slots behind
// the last document are one more document, of padding alone.

namespace dsm {

struct ContextParallelArguments {
  const int32_t* cu_seqlens;  // [num_entries], two or more
  int64_t num_entries;
  int64_t num_tokens;
  int64_t cp_size;             // 1 .. 2^16
  int64_t num_slots;           // a multiple of 2 * cp_size
  int32_t* cu_seqlens_padded;  // [num_entries]
  int64_t* token_idx;          // [cp_size, num_slots / cp_size], -1: padding
  int64_t* position_ids;       // likewise
  int64_t* inverse;            // [num_tokens]

  DSM_HOST_DEVICE int64_t num_documents() const { return num_entries - 1; }
  DSM_HOST_DEVICE int64_t slots_of_rank() const { return num_slots / cp_size; }

  /// Tokens of a document; none where cu_seqlens falls.
  DSM_HOST_DEVICE int64_t length(int64_t document) const {
    const int64_t tokens = int64_t{cu_seqlens[document + 1]} - cu_seqlens[document];
    return tokens > 0 ? tokens : 0;
  }

  /// Tokens of one of its chunks: divided in 32 bits, which is far cheaper on a GPU.
  DSM_HOST_DEVICE int64_t chunk_size(int64_t document) const {
    const uint32_t num_chunks = static_cast<uint32_t>(2 * cp_size);
    const uint32_t tokens = static_cast<uint32_t>(length(document));
    return tokens / num_chunks + (tokens % num_chunks != 0);
  }

  DSM_HOST_DEVICE int64_t padded_length(int64_t document) const {
    return chunk_size(document) * 2 * cp_size;
  }
};

/// A document where it stands among the padded ones; the tail has no token.
struct PaddedDocument {
  int64_t padded_begin;
  int64_t chunk_size;
  int64_t token_begin;
  int64_t length;
};

/// Which chunk of a document a rank holds first, and which second.
DSM_HOST_DEVICE inline int64_t chunk_of_rank(int64_t cp_size, int64_t rank, bool second) {
  return second ? 2 * cp_size - 1 - rank : rank;
}

// The kernel. A block needs the padded offsets of any document: its threads add the padded lengths
// of num_documents / 256 documents each, and a scan of the 256 sums leaves a walk of so many
// documents between a sum and any offset. No other pass, and any number of documents.

inline constexpr int context_parallel_per_thread = 2;

/// Documents that one sum covers.
DSM_HOST_DEVICE inline int64_t documents_of_sum(const ContextParallelArguments& arguments) {
  return ceil_div(arguments.num_documents(), threads_per_block);
}

DSM_HOST_DEVICE inline int64_t context_parallel_slot_blocks(
    const ContextParallelArguments& arguments) {
  return ceil_div(arguments.num_slots, threads_per_block * context_parallel_per_thread);
}

/// Blocks of the grid: those of the slots, then those of the tokens; the first also writes
/// cu_seqlens_padded, so there is one at least.
DSM_HOST_DEVICE inline int64_t context_parallel_blocks(const ContextParallelArguments& arguments) {
  const int64_t blocks =
      context_parallel_slot_blocks(arguments) +
      ceil_div(arguments.num_tokens, threads_per_block * context_parallel_per_thread);
  return blocks > 0 ? blocks : 1;
}

/// First phase: sums[thread_idx], the padded lengths of the thread's documents.
DSM_HOST_DEVICE inline void sum_padded_lengths(const ContextParallelArguments& arguments,
                                               int64_t* sums, int thread_idx) {
  const int64_t count = documents_of_sum(arguments);
  int64_t sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t document = thread_idx * count + i;
    if (document < arguments.num_documents()) sum += arguments.padded_length(document);
  }
  sums[thread_idx] = sum;
}

/// Second phase, for strides 1, 2, ... 128 with the arrays exchanged each time: inclusive sums.
DSM_HOST_DEVICE inline void scan_step(const int64_t* from, int64_t* to, int stride,
                                      int thread_idx) {
  to[thread_idx] = from[thread_idx] + (thread_idx >= stride ? from[thread_idx - stride] : 0);
}

/// Where a document begins among the padded ones.
DSM_HOST_DEVICE inline int64_t padded_begin_of(const ContextParallelArguments& arguments,
                                               const int64_t* sums, int64_t document) {
  const int64_t count = documents_of_sum(arguments);
  const int64_t sum_idx = document / count;
  int64_t begin = sum_idx == 0 ? 0 : sums[sum_idx - 1];
  for (int64_t i = sum_idx * count; i < document; ++i) begin += arguments.padded_length(i);
  return begin;
}

/// The document that holds a place among the padded ones, or the tail.
DSM_HOST_DEVICE inline PaddedDocument document_at(const ContextParallelArguments& arguments,
                                                  const int64_t* sums, int64_t place) {
  const int64_t total = sums[threads_per_block - 1];
  if (place >= total) {
    return {total, (arguments.num_slots - total) / (2 * arguments.cp_size), 0, 0};
  }
  int low = 0;  // the answer is the first sum above place
  int high = threads_per_block - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (sums[middle] <= place) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  int64_t document = low * documents_of_sum(arguments);
  int64_t begin = low == 0 ? 0 : sums[low - 1];
  while (begin + arguments.padded_length(document) <= place) {
    begin += arguments.padded_length(document);
    ++document;
  }
  return {begin, arguments.chunk_size(document), arguments.cu_seqlens[document],
          arguments.length(document)};
}

/// Position and token of two slots of one rank, with a 16-byte store each.
DSM_HOST_DEVICE inline void fill_slots(const ContextParallelArguments& arguments,
                                       const int64_t* sums, int64_t first_slot) {
  constexpr int n = context_parallel_per_thread;
  if (first_slot >= arguments.num_slots) return;
  const int64_t rank = first_slot / arguments.slots_of_rank();
  alignas(16) int64_t tokens[n] = {};
  alignas(16) int64_t positions[n] = {};
  for (int i = 0; i < n; ++i) {
    const int64_t slot = first_slot + i - rank * arguments.slots_of_rank();
    const PaddedDocument document = document_at(arguments, sums, slot * arguments.cp_size);
    const int64_t offset = slot - document.padded_begin / arguments.cp_size;
    const bool second = offset >= document.chunk_size;
    const int64_t chunk = chunk_of_rank(arguments.cp_size, rank, second);
    positions[i] = chunk * document.chunk_size + offset - (second ? document.chunk_size : 0);
    tokens[i] = positions[i] < document.length ? document.token_begin + positions[i] : -1;
  }
  store_chunks(arguments.token_idx + first_slot, tokens);
  store_chunks(arguments.position_ids + first_slot, positions);
}

/// The slot of a token; num_slots, which no array has, for one without a slot. That is none where
/// cu_seqlens and num_slots are sound.
DSM_HOST_DEVICE inline int64_t slot_of_token(const ContextParallelArguments& arguments,
                                             const int64_t* sums, int64_t token_idx) {
  const int64_t document = find_document(arguments.cu_seqlens, arguments.num_entries, token_idx);
  const int64_t position = token_idx - arguments.cu_seqlens[document];
  if (position < 0 || position >= arguments.length(document)) return arguments.num_slots;
  const int64_t begin = padded_begin_of(arguments, sums, document);
  if (begin + arguments.padded_length(document) > arguments.num_slots) return arguments.num_slots;
  const uint32_t chunk_size = static_cast<uint32_t>(arguments.chunk_size(document));
  const int64_t chunk = static_cast<uint32_t>(position) / chunk_size;
  const int64_t offset = static_cast<uint32_t>(position) % chunk_size;
  const bool second = chunk >= arguments.cp_size;
  const int64_t rank = second ? 2 * arguments.cp_size - 1 - chunk : chunk;
  return rank * arguments.slots_of_rank() + begin / arguments.cp_size + (second ? chunk_size : 0) +
         offset;
}

/// Last phase, over the inclusive sums.
DSM_HOST_DEVICE inline void context_parallel_body(const ContextParallelArguments& arguments,
                                                  const int64_t* sums, int64_t block_idx,
                                                  int thread_idx) {
  constexpr int n = context_parallel_per_thread;
  if (block_idx == 0) {
    const int64_t count = documents_of_sum(arguments);
    int64_t begin = thread_idx == 0 ? 0 : sums[thread_idx - 1];
    if (thread_idx == 0) arguments.cu_seqlens_padded[0] = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t document = thread_idx * count + i;
      if (document >= arguments.num_documents()) break;
      begin += arguments.padded_length(document);
      arguments.cu_seqlens_padded[document + 1] =
          static_cast<int32_t>(begin < arguments.num_slots ? begin : arguments.num_slots);
    }
  }
  const int64_t slot_blocks = context_parallel_slot_blocks(arguments);
  if (block_idx < slot_blocks) {
    fill_slots(arguments, sums, (block_idx * threads_per_block + thread_idx) * n);
    return;
  }
  const int64_t first = ((block_idx - slot_blocks) * threads_per_block + thread_idx) * n;
  if (first + n <= arguments.num_tokens) {
    alignas(16) int64_t slots[n] = {};
    for (int i = 0; i < n; ++i) slots[i] = slot_of_token(arguments, sums, first + i);
    store_chunks(arguments.inverse + first, slots);
  } else if (first < arguments.num_tokens) {
    arguments.inverse[first] = slot_of_token(arguments, sums, first);
  }
}

/// The CPU loop: runs of ascending numbers, two for each rank and document. Throws InputError as
/// check_cu_seqlens does, and where the padded documents need more slots than there are.
void context_parallel_split(const ContextParallelArguments& arguments);

}  // namespace dsm
