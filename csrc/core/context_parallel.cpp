#include "core/context_parallel.h"

#include <algorithm>
#include <cassert>

#include "core/error.h"
#include "core/vector_loops.h"

namespace dsm {
namespace {

/// Writes cu_seqlens_padded and returns its last entry.
int64_t pad_documents(const ContextParallelArguments& arguments) {
  int64_t total = 0;
  for (int64_t document = 0; document < arguments.num_documents(); ++document) {
    total += arguments.padded_length(document);
  }
  if (total > arguments.num_slots) {
    throw InputError(concat("num_slots: the documents, each padded to a multiple of ",
                            2 * arguments.cp_size, ", need ", total, " slots, found ",
                            arguments.num_slots));
  }
  int64_t end = 0;
  arguments.cu_seqlens_padded[0] = 0;
  for (int64_t document = 0; document < arguments.num_documents(); ++document) {
    end += arguments.padded_length(document);
    arguments.cu_seqlens_padded[document + 1] = static_cast<int32_t>(end);
  }
  return total;
}

void fill_document(const ContextParallelArguments& arguments, const PaddedDocument& document) {
  const int64_t size = document.chunk_size;
  for (int64_t rank = 0; rank < arguments.cp_size; ++rank) {
    for (const bool second : {false, true}) {
      const int64_t slot = rank * arguments.slots_of_rank() +
                           document.padded_begin / arguments.cp_size + (second ? size : 0);
      const int64_t position = chunk_of_rank(arguments.cp_size, rank, second) * size;
      const int64_t num_tokens = std::clamp<int64_t>(document.length - position, 0, size);
      const int64_t token_idx = document.token_begin + position;
      fill_ascending(arguments.position_ids + slot, size, position);
      fill_ascending(arguments.token_idx + slot, num_tokens, token_idx);
      fill_equal(arguments.token_idx + slot + num_tokens, size - num_tokens, int64_t{-1});
      if (num_tokens > 0) fill_ascending(arguments.inverse + token_idx, num_tokens, slot);
    }
  }
}

}  // namespace

void context_parallel_split(const ContextParallelArguments& arguments) {
  assert(arguments.cp_size > 0 && arguments.num_slots % (2 * arguments.cp_size) == 0);
  check_cu_seqlens({arguments.cu_seqlens, static_cast<size_t>(arguments.num_entries)},
                   arguments.num_tokens);
  const int64_t total = pad_documents(arguments);
  for (int64_t document = 0; document < arguments.num_documents(); ++document) {
    fill_document(arguments, {arguments.cu_seqlens_padded[document], arguments.chunk_size(document),
                              arguments.cu_seqlens[document], arguments.length(document)});
  }
  fill_document(arguments, {total, (arguments.num_slots - total) / (2 * arguments.cp_size), 0, 0});
}

}  // namespace dsm
