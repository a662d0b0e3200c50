#include "core/block_mask.h"

#include <algorithm>
#include <cassert>

#include "core/vector_loops.h"

namespace dsm {
namespace {

/// Groups of 4 with a fixed number of stores, which compile to vectors, while they fit the line.
template <class Entry>
void fill_list(int32_t* list, int64_t capacity, int32_t count, const Entry& entry) {
  constexpr int32_t group = 4;
  for (int32_t first = 0; first < count; first += group) {
    if (first + group <= capacity) {
      for (int32_t i = 0; i < group; ++i) list[first + i] = entry(first + i);
    } else {
      for (int32_t i = first; i < count; ++i) list[i] = entry(i);
    }
  }
}

template <MaskLine kind, bool causal>
void fill_lines(BlockMaskArguments arguments, const BlockLists& lists) {
  arguments.causal = causal;  // known to the compiler
  constexpr bool row = kind == MaskLine::row;
  const int64_t size = row ? arguments.query_block_size : arguments.key_block_size;
  const BlockDivider divider(row ? arguments.key_block_size : arguments.query_block_size);
  const int32_t* cu_seqlens = arguments.cu_seqlens;
  int64_t document = 0;
  const auto range_of = [&](int64_t token_idx) {
    while (cu_seqlens[document + 1] <= token_idx) ++document;
    return attended_range(arguments, kind, token_idx,
                          {cu_seqlens[document], cu_seqlens[document + 1]});
  };
  const auto fill_line = [&](int64_t line, int64_t last, bool complete) {
    const TokenRange first_range = range_of(line * size);
    const TokenRange last_range = range_of(last);
    const BlockRange blocks = block_range(first_range, last_range, complete, divider);
    lists.num_blocks[line] = blocks.num_partial();
    lists.full_num_blocks[line] = blocks.num_full();
    const int64_t offset = line * lists.capacity;
    fill_list(lists.indices + offset, lists.capacity, blocks.num_partial(),
              [&](int32_t i) { return blocks.partial_block(i); });
    fill_list(lists.full_indices + offset, lists.capacity, blocks.num_full(),
              [&](int32_t i) { return blocks.full_block(i); });
  };
  const int64_t num_complete = arguments.num_tokens / size;
  for (int64_t line = 0; line < num_complete; ++line) fill_line(line, (line + 1) * size - 1, true);
  if (num_complete < lists.num_lines) fill_line(num_complete, arguments.num_tokens - 1, false);
}

void fill_key_bounds(const BlockMaskArguments& arguments, const BlockMaskArrays& arrays) {
  for (int64_t document = 0; document + 1 < arguments.num_entries; ++document) {
    const int32_t begin = arguments.cu_seqlens[document];
    const int32_t end = arguments.cu_seqlens[document + 1];
    // Of so many queries the window reaches the document's first token, of as many its last one.
    const int64_t length = end - begin;
    const int64_t reaching = std::min(length, arguments.window);
    fill_equal(arrays.key_begin + begin, reaching, begin);
    fill_ascending(arrays.key_begin + begin + reaching, length - reaching, begin + 1);
    if (arguments.causal) continue;
    fill_ascending(arrays.key_end + begin, length - reaching, begin + arguments.window);
    fill_equal(arrays.key_end + end - reaching, reaching, end);
  }
}

}  // namespace

void block_mask(const BlockMaskArguments& arguments) {
  assert(arguments.query_block_size > 0 && arguments.key_block_size > 0 && arguments.window > 0);
  check_cu_seqlens({arguments.cu_seqlens, static_cast<size_t>(arguments.num_entries)},
                   arguments.num_tokens);
  const BlockMaskArrays arrays(arguments);
  if (arguments.causal) {
    fill_lines<MaskLine::row, true>(arguments, arrays.rows);
    fill_lines<MaskLine::column, true>(arguments, arrays.columns);
  } else {
    fill_lines<MaskLine::row, false>(arguments, arrays.rows);
    fill_lines<MaskLine::column, false>(arguments, arrays.columns);
  }
  if (arguments.with_key_bounds) fill_key_bounds(arguments, arrays);
}

}  // namespace dsm
