#pragma once

#include <cstdint>

#include "core/host_device.h"
#include "core/kernel_body.h"
#include "core/packed_metadata.h"

// The block lists of torch's FlexAttention for a block-diagonal mask, in closed form.
//
// A query attends to the keys of its own document that lie in its window; so do, the other way
// round, the queries that attend to a key. Both are one range of tokens that holds the token
// itself, and neither end ever moves back from one token to the next. Therefore, for a line of the
// mask (a row of blocks of queries or a column of blocks of keys) whose tokens are [first, last]:
//   something is attended from range(first).begin to range(last).end, without a gap;
//   every token attends to what lies from range(last).begin to range(first).end.
// The blocks that touch the former and those that lie whole in the latter are one range each, so
// that a line is four numbers, independent of all other lines.

namespace dsm {

/// Divides by a constant with a product and a shift, exactly for dividends below 2^31 (Granlund and
/// Montgomery 1994, "Division by invariant integers using multiplication").
class BlockDivider {
 public:
  /// 1 <= block_size < 2^31
  DSM_HOST_DEVICE explicit BlockDivider(int64_t block_size) {
    while (int64_t{1} << (shift_ - 31) < block_size) ++shift_;
    const uint64_t size = static_cast<uint64_t>(block_size);
    multiplier_ = ((uint64_t{1} << shift_) + size - 1) / size;
  }

  /// The block that holds a token.
  DSM_HOST_DEVICE int32_t block_of(int64_t token_idx) const {
    return static_cast<int32_t>(static_cast<uint64_t>(token_idx) * multiplier_ >> shift_);
  }

  /// Blocks that the first num_tokens tokens touch.
  DSM_HOST_DEVICE int32_t blocks_to_hold(int64_t num_tokens) const {
    return num_tokens == 0 ? 0 : block_of(num_tokens - 1) + 1;
  }

 private:
  int shift_ = 31;
  uint64_t multiplier_;
};

struct BlockMaskArguments {
  const int32_t* cu_seqlens;  // [num_entries], two or more
  int64_t num_entries;
  int64_t num_tokens;
  int64_t query_block_size;  // 1 .. 2^31 - 1
  int64_t key_block_size;
  bool causal;
  int64_t window;  // queries and keys less than this apart; num_tokens or more: no window
  bool with_key_bounds;
  int32_t* buffer;  // on 16 bytes, see BlockMaskArrays

  /// key_begin, and key_end where it is not the query itself.
  DSM_HOST_DEVICE int64_t num_bounds() const { return !with_key_bounds ? 0 : causal ? 1 : 2; }
};

/// The lists of one direction: of each row the blocks of keys, or of each column the blocks of
/// queries. A line has a count and `capacity` indices, of which the first `count` are meant.
struct BlockLists {
  int64_t num_lines;
  int64_t capacity;
  int32_t* num_blocks;       // [num_lines]
  int32_t* indices;          // [num_lines, capacity]
  int32_t* full_num_blocks;  // [num_lines]
  int32_t* full_indices;     // [num_lines, capacity]

  DSM_HOST_DEVICE BlockLists(int64_t lines, int64_t blocks, int32_t* begin)
      : num_lines(lines), capacity(blocks), num_blocks(begin) {
    indices = num_blocks + lines;
    full_num_blocks = indices + lines * blocks;
    full_indices = full_num_blocks + lines;
  }

  DSM_HOST_DEVICE int32_t* end() const { return full_indices + num_lines * capacity; }
};

/// Where everything stands in the buffer: with key bounds first key_begin and, unless causal,
/// key_end, each num_tokens rounded up to a multiple of 4; the lists of the rows; those of the
/// columns.
struct BlockMaskArrays {
  int32_t* key_begin;
  int32_t* key_end;
  BlockLists rows;
  BlockLists columns;

  DSM_HOST_DEVICE explicit BlockMaskArrays(const BlockMaskArguments& arguments)
      : BlockMaskArrays(arguments, ceil_div(arguments.num_tokens, 4) * 4,
                        ceil_div(arguments.num_tokens, arguments.query_block_size),
                        ceil_div(arguments.num_tokens, arguments.key_block_size)) {}

 private:
  DSM_HOST_DEVICE BlockMaskArrays(const BlockMaskArguments& arguments, int64_t bounds_size,
                                  int64_t num_rows, int64_t num_columns)
      : key_begin(arguments.buffer),
        key_end(key_begin + bounds_size),
        rows(num_rows, num_columns, arguments.buffer + arguments.num_bounds() * bounds_size),
        columns(num_columns, num_rows, rows.end()) {}
};

/// Entries of the buffer.
inline int64_t block_mask_entries(const BlockMaskArguments& arguments) {
  const int64_t rows = ceil_div(arguments.num_tokens, arguments.query_block_size);
  const int64_t columns = ceil_div(arguments.num_tokens, arguments.key_block_size);
  return arguments.num_bounds() * ceil_div(arguments.num_tokens, 4) * 4 + 2 * (rows + columns) +
         4 * rows * columns;
}

/// Tokens [begin, end).
struct TokenRange {
  int64_t begin;
  int64_t end;
};

/// The tokens of a document, made to hold the token whatever stands in cu_seqlens: nothing that is
/// made of it can lead out of the pack.
DSM_HOST_DEVICE inline TokenRange document_around(const BlockMaskArguments& arguments,
                                                  int64_t document, int64_t token_idx) {
  const int64_t begin = arguments.cu_seqlens[document];
  const int64_t end = arguments.cu_seqlens[document + 1];
  const int64_t last_end = end < arguments.num_tokens ? end : arguments.num_tokens;
  return {begin < 0 ? 0 : (begin < token_idx ? begin : token_idx),
          last_end > token_idx ? last_end : token_idx + 1};
}

/// Which lines of the mask are meant: rows of queries or columns of keys.
enum class MaskLine { row, column };

/// Of a row's token the keys that it attends to, of a column's the queries that attend to it.
DSM_HOST_DEVICE inline TokenRange attended_range(const BlockMaskArguments& arguments, MaskLine line,
                                                 int64_t token_idx, TokenRange document) {
  const int64_t window_begin = token_idx - arguments.window + 1;
  const int64_t window_end = token_idx + arguments.window;
  TokenRange range{document.begin > window_begin ? document.begin : window_begin,
                   document.end < window_end ? document.end : window_end};
  if (arguments.causal && line == MaskLine::row) range.end = token_idx + 1;
  if (arguments.causal && line == MaskLine::column) range.begin = token_idx;
  return range;
}

/// The blocks of a line: [begin, end) touch the mask, [full_begin, full_end) among them lie whole
/// in it.
struct BlockRange {
  int32_t begin;
  int32_t end;
  int32_t full_begin;
  int32_t full_end;

  DSM_HOST_DEVICE int32_t num_full() const { return full_end - full_begin; }
  DSM_HOST_DEVICE int32_t num_partial() const { return end - begin - num_full(); }

  /// Entry i of the list of blocks that lie partly in the mask: those before and behind the full.
  DSM_HOST_DEVICE int32_t partial_block(int32_t i) const {
    return begin + i + (begin + i < full_begin ? 0 : num_full());
  }
  DSM_HOST_DEVICE int32_t full_block(int32_t i) const { return full_begin + i; }
};

/// The blocks of a line from the ranges of its first and its last token. A block that reaches
/// beyond the pack is not complete, and nothing in its line is full.
DSM_HOST_DEVICE inline BlockRange block_range(TokenRange first, TokenRange last, bool complete,
                                              const BlockDivider& divider) {
  BlockRange blocks;
  blocks.begin = divider.block_of(first.begin);
  blocks.end = divider.block_of(last.end - 1) + 1;
  const int32_t full_begin = divider.blocks_to_hold(last.begin);
  blocks.full_begin = full_begin > blocks.begin ? full_begin : blocks.begin;
  // Complete blocks only: a range ends within the pack.
  const int32_t whole_end = complete ? divider.block_of(first.end) : 0;
  const int32_t full_end = whole_end < blocks.end ? whole_end : blocks.end;
  blocks.full_begin = blocks.full_begin < blocks.end ? blocks.full_begin : blocks.end;
  blocks.full_end = full_end > blocks.full_begin ? full_end : blocks.full_begin;
  return blocks;
}

inline constexpr int threads_per_line = 32;
inline constexpr int lines_per_block = threads_per_block / threads_per_line;
inline constexpr int queries_per_thread = 4;

/// Blocks of the grid: those of the lines, then those of the key bounds.
DSM_HOST_DEVICE inline int64_t block_mask_line_blocks(const BlockMaskArguments& arguments) {
  const BlockMaskArrays arrays(arguments);
  return ceil_div(arrays.rows.num_lines + arrays.columns.num_lines, lines_per_block);
}
DSM_HOST_DEVICE inline int64_t block_mask_blocks(const BlockMaskArguments& arguments) {
  const int64_t num_queries = arguments.with_key_bounds ? arguments.num_tokens : 0;
  return block_mask_line_blocks(arguments) +
         ceil_div(num_queries, threads_per_block * queries_per_thread);
}

/// A thread's part of one list: groups of 4 entries that stand on 16 bytes in the buffer, every
/// 32nd group. One that lies whole in the line is one store, entries behind the last included.
template <class Entry>
DSM_HOST_DEVICE inline void store_list(const int32_t* buffer, int32_t* list, int64_t capacity,
                                       int64_t count, int lane, const Entry& entry) {
  const int64_t misalignment = (list - buffer) % 4;
  for (int64_t first = lane * 4 - misalignment; first < count; first += threads_per_line * 4) {
    if (first >= 0 && first + 4 <= capacity) {
      alignas(16) int32_t blocks[4];
      for (int i = 0; i < 4; ++i) blocks[i] = entry(static_cast<int32_t>(first) + i);
      store_chunks(list + first, blocks);
    } else {
      for (int64_t i = first < 0 ? 0 : first; i < first + 4 && i < count; ++i) {
        list[i] = entry(static_cast<int32_t>(i));
      }
    }
  }
}

/// A warp writes one line: its threads find the same four numbers by two searches each.
DSM_HOST_DEVICE inline void block_mask_line(const BlockMaskArguments& arguments,
                                            const BlockLists& lists, MaskLine kind, int64_t line,
                                            int lane) {
  const bool row = kind == MaskLine::row;
  const int64_t size = row ? arguments.query_block_size : arguments.key_block_size;
  const int64_t first = line * size;
  const bool complete = first + size <= arguments.num_tokens;
  const int64_t last = (complete ? first + size : arguments.num_tokens) - 1;
  TokenRange ranges[2];
  for (int i = 0; i < 2; ++i) {
    const int64_t token_idx = i == 0 ? first : last;
    const int64_t document = find_document(arguments.cu_seqlens, arguments.num_entries, token_idx);
    ranges[i] =
        attended_range(arguments, kind, token_idx, document_around(arguments, document, token_idx));
  }
  const BlockRange blocks =
      block_range(ranges[0], ranges[1], complete,
                  BlockDivider(row ? arguments.key_block_size : arguments.query_block_size));
  if (lane == 0) {
    lists.num_blocks[line] = blocks.num_partial();
    lists.full_num_blocks[line] = blocks.num_full();
  }
  const int64_t offset = line * lists.capacity;
  store_list(arguments.buffer, lists.indices + offset, lists.capacity, blocks.num_partial(), lane,
             [&](int32_t i) { return blocks.partial_block(i); });
  store_list(arguments.buffer, lists.full_indices + offset, lists.capacity, blocks.num_full(), lane,
             [&](int32_t i) { return blocks.full_block(i); });
}

/// A thread writes the bounds of 4 queries with one 16-byte store for each array.
DSM_HOST_DEVICE inline void key_bounds_body(const BlockMaskArguments& arguments, int64_t block_idx,
                                            int thread_idx) {
  constexpr int n = queries_per_thread;
  const int64_t first = (block_idx * threads_per_block + thread_idx) * n;
  const int64_t rest = arguments.num_tokens - first;
  if (rest <= 0) return;
  const BlockMaskArrays arrays(arguments);
  alignas(16) int32_t begins[n] = {};
  alignas(16) int32_t ends[n] = {};
  for (int i = 0; i < n && i < rest; ++i) {
    const int64_t document = find_document(arguments.cu_seqlens, arguments.num_entries, first + i);
    const TokenRange keys = attended_range(arguments, MaskLine::row, first + i,
                                           document_around(arguments, document, first + i));
    begins[i] = static_cast<int32_t>(keys.begin);
    ends[i] = static_cast<int32_t>(keys.end);
  }
  // The arrays are whole groups of 4.
  store_chunks(arrays.key_begin + first, begins);
  if (!arguments.causal) store_chunks(arrays.key_end + first, ends);
}

DSM_HOST_DEVICE inline void block_mask_body(const BlockMaskArguments& arguments, int64_t block_idx,
                                            int thread_idx) {
  const int64_t line_blocks = block_mask_line_blocks(arguments);
  if (block_idx >= line_blocks) {
    key_bounds_body(arguments, block_idx - line_blocks, thread_idx);
    return;
  }
  const BlockMaskArrays arrays(arguments);
  const int64_t line = block_idx * lines_per_block + thread_idx / threads_per_line;
  const int64_t column = line - arrays.rows.num_lines;
  const int lane = thread_idx % threads_per_line;
  if (column < 0) {
    block_mask_line(arguments, arrays.rows, MaskLine::row, line, lane);
  } else if (column < arrays.columns.num_lines) {
    block_mask_line(arguments, arrays.columns, MaskLine::column, column, lane);
  }
}

/// The CPU loop. Nothing is written behind the entries of a list but what completes a group of 4,
/// within its line. Throws InputError as check_cu_seqlens does.
void block_mask(const BlockMaskArguments& arguments);

}  // namespace dsm
