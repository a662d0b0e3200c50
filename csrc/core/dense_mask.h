#pragma once

#include <algorithm>
#include <cstdint>

#include "core/host_device.h"
#include "core/kernel_body.h"
#include "core/packed_metadata.h"

namespace dsm {

struct DenseMaskArguments {
  const int32_t* cu_seqlens;  // [num_entries]
  int64_t num_entries;
  int64_t num_tokens;
  /// Columns of a row. Column c of the row of query q tells of key c, and in the banded form of
  /// key q - (row_length - 1) + c.
  int64_t row_length;
  bool banded;
  bool causal;
  /// A query attends to keys less than so far from it; num_tokens or more: to all it may.
  int64_t window;
  void* mask;  // [num_tokens, row_length] elements
};

/// Elements of a mask as the bits of one: what stands where a query attends, and where not.
template <class Element>
struct MaskBits {
  Element attended;
  Element masked;
};

inline constexpr MaskBits<uint8_t> bool_mask_bits{1, 0};
inline constexpr MaskBits<uint16_t> bfloat16_mask_bits{0, 0xFF80};       // 0 and -inf
inline constexpr MaskBits<uint32_t> float32_mask_bits{0, 0xFF80'0000u};  // 0 and -inf

/// [begin, end) of a row.
struct ColumnRange {
  int64_t begin;
  int64_t end;
};

/// The columns that a query of the document attends to: they are consecutive. Inside the row for
/// any entries within [0, num_tokens].
DSM_HOST_DEVICE inline ColumnRange attended_columns(const DenseMaskArguments& arguments,
                                                    int64_t document, int64_t query) {
  int64_t begin = arguments.cu_seqlens[document];
  int64_t end = arguments.causal ? query + 1 : arguments.cu_seqlens[document + 1];
  if (begin < query + 1 - arguments.window) begin = query + 1 - arguments.window;
  if (end > query + arguments.window) end = query + arguments.window;
  if (arguments.banded) {
    begin += arguments.row_length - 1 - query;
    end += arguments.row_length - 1 - query;
    if (begin < 0) begin = 0;
  }
  return {begin, end};
}

/// Elements of one value, as many as 8 bytes hold.
template <class Element>
DSM_HOST_DEVICE constexpr uint64_t repeated(Element bits) {
  // 0x0001'0001'0001'0001 and the like: the ones of a word of elements.
  return ~uint64_t{0} / static_cast<Element>(~Element{0}) * bits;
}

/// A word whose lowest num_bytes bytes are ones, 0 to 8: two shifts, since one by 64 is undefined.
DSM_HOST_DEVICE constexpr uint64_t low_bytes(int num_bytes) {
  return ((uint64_t{1} << 4 * num_bytes) << 4 * num_bytes) - 1;
}

/// The word of 8 bytes whose bytes [begin, end) are attended to; both are clamped to the word.
template <class Element>
DSM_HOST_DEVICE inline uint64_t mask_word(MaskBits<Element> bits, int begin, int end) {
  const auto clamp = [](int byte) { return byte < 0 ? 0 : byte > 8 ? 8 : byte; };
  const uint64_t attended = low_bytes(clamp(end)) & ~low_bytes(clamp(begin));
  return (repeated(bits.attended) & attended) | (repeated(bits.masked) & ~attended);
}

/// The chunk of a row that begins at this column; an end of the range is in it.
template <class Element>
DSM_HOST_DEVICE inline Chunk mixed_chunk(MaskBits<Element> bits, ColumnRange attended,
                                         int64_t first_column) {
  constexpr int64_t width = sizeof(Chunk) / sizeof(Element);
  // Before or after the chunk is as good as at its edge, and 32 bits are enough.
  const auto byte_within = [first_column](int64_t column) {
    const int64_t within = column - first_column;
    return static_cast<int>(within < 0       ? 0
                            : within > width ? width
                                             : within) *
           static_cast<int>(sizeof(Element));
  };
  const int begin = byte_within(attended.begin);
  const int end = byte_within(attended.end);
  return {mask_word(bits, begin, end), mask_word(bits, begin - 8, end - 8)};
}

/// Writes the row's chunks lane, lane + lanes, ...: 16 bytes each, where 16 divides the address;
/// and of the elements before and after those its share.
template <class Element>
DSM_HOST_DEVICE inline void write_mask_row(Element* row, int64_t row_length, ColumnRange attended,
                                           MaskBits<Element> bits, int lane, int lanes) {
  constexpr int width = sizeof(Chunk) / sizeof(Element);  // elements of a chunk
  const auto write_elements = [&](int64_t first, int64_t last) {
    for (int64_t column = first + lane; column < last; column += lanes) {
      const bool is_attended = column >= attended.begin && column < attended.end;
      row[column] = is_attended ? bits.attended : bits.masked;
    }
  };
  const auto address = reinterpret_cast<uintptr_t>(row) / sizeof(Element);
  const int64_t first_aligned = static_cast<int64_t>(-address % width);
  const int64_t head = first_aligned < row_length ? first_aligned : row_length;
  const int num_chunks = static_cast<int>((row_length - head) / width);
  write_elements(0, head);
  // The chunks that hold the range's ends, -1 for one in the head: only those are mixed.
  const auto chunk_of = [head](int64_t column) {
    return static_cast<int>((column - head + width) / width) - 1;
  };
  const int begin_chunk = chunk_of(attended.begin);
  const int end_chunk = chunk_of(attended.end);
  Chunk* chunks = reinterpret_cast<Chunk*>(row + head);
  for (int i = lane; i < num_chunks; i += lanes) {
    const uint64_t word = repeated(i > begin_chunk && i < end_chunk ? bits.attended : bits.masked);
    Chunk chunk{word, word};
    if (i == begin_chunk || i == end_chunk) {
      chunk = mixed_chunk(bits, attended, head + int64_t{i} * width);
    }
    chunks[i] = chunk;
  }
  write_elements(head + int64_t{num_chunks} * width, row_length);
}

/// How the rows are dealt to blocks and threads.
struct DenseMaskGrid {
  int64_t rows_per_block;
  int lanes;  // threads that share a row, a power of two
  int64_t num_blocks;
};

/// A thread has some chunks to write for its search, a warp's stores are of one row where rows are
/// long enough, and blocks are many.
inline DenseMaskGrid dense_mask_grid(const DenseMaskArguments& arguments, int64_t element_bytes) {
  constexpr int64_t bytes_per_block = threads_per_block * 8 * static_cast<int64_t>(sizeof(Chunk));
  const int64_t row_bytes = std::max(arguments.row_length * element_bytes, int64_t{1});
  const int64_t row_chunks = ceil_div(row_bytes, sizeof(Chunk));
  int lanes = 1;
  while (lanes < threads_per_block && lanes < row_chunks) lanes *= 2;
  const int64_t rows = std::max(bytes_per_block / row_bytes, int64_t{threads_per_block / lanes});
  return {rows, lanes, ceil_div(arguments.num_tokens, rows)};
}

/// Writes a thread's part of the block's rows: one search, then a walk from row to row.
template <class Element>
DSM_HOST_DEVICE inline void dense_mask_body(const DenseMaskArguments& arguments,
                                            const DenseMaskGrid& grid, MaskBits<Element> bits,
                                            int64_t block_idx, int thread_idx) {
  const int lane = thread_idx & (grid.lanes - 1);
  const int64_t first = block_idx * grid.rows_per_block;
  const int64_t rest = arguments.num_tokens - first;
  const int64_t last = first + (rest < grid.rows_per_block ? rest : grid.rows_per_block);
  int64_t query = first + thread_idx / grid.lanes;
  if (query >= last) return;
  int64_t document = find_document(arguments.cu_seqlens, arguments.num_entries, query);
  for (; query < last; query += threads_per_block / grid.lanes) {
    document = advance_document(arguments.cu_seqlens, arguments.num_entries, document, query);
    Element* row = static_cast<Element*>(arguments.mask) + query * arguments.row_length;
    write_mask_row(row, arguments.row_length, attended_columns(arguments, document, query), bits,
                   lane, grid.lanes);
  }
}

/// The CPU loop over all rows. Throws InputError unless cu_seqlens runs from 0 to num_tokens
/// without falling.
template <class Element>
void dense_mask(const DenseMaskArguments& arguments, MaskBits<Element> bits);

}  // namespace dsm
