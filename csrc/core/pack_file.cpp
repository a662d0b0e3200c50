#include "core/pack_file.h"

#include <cassert>
#include <cstring>
#include <limits>

#include "core/checked_size.h"
#include "core/error.h"

namespace dsm {
namespace {

constexpr uint64_t version = 2;

/// The header as it lies in the file, little-endian as every machine this is built for.
struct RawHeader {
  char magic[8];
  uint32_t version;
  uint32_t strategy;
  uint64_t num_packs;
  uint64_t num_pieces;
  uint64_t num_documents;
  uint64_t capacity;
  uint64_t seed;
  uint64_t epoch;
  uint32_t alignment;
  uint32_t overlong;
  uint64_t cost_token;
  uint64_t cost_square;
  uint64_t tokens;
  uint64_t dropped_documents;
  uint64_t dropped_tokens;
  uint64_t truncated_documents;
  uint64_t truncated_tokens;
  uint32_t id_bytes;
  uint32_t has_begins;
  uint64_t lengths_xxh3;
  uint64_t payload_xxh3;
  uint64_t header_xxh3;
  uint64_t zeros[4];
};
static_assert(sizeof(RawHeader) == pack_header_bytes);
static_assert(offsetof(RawHeader, header_xxh3) == pack_header_hashed_bytes);

constexpr char magic[8] = {'D', 'S', 'M', 'P', 'A', 'C', 'K', 'S'};

void check_ranges(const RawHeader& raw, const std::string& name) {
  const bool known_strategy = raw.strategy <= static_cast<uint32_t>(PackStrategy::balanced);
  const bool known_policy = raw.overlong <= static_cast<uint32_t>(OverlongPolicy::truncate);
  if (!known_strategy || !known_policy || (raw.id_bytes != 4 && raw.id_bytes != 8) ||
      raw.has_begins != (raw.strategy == static_cast<uint32_t>(PackStrategy::concat_split))) {
    throw InputError(concat(name, ": expected a known strategy and overlong policy and document ",
                            "ids of 4 or 8 bytes, found ", raw.strategy, ", ", raw.overlong,
                            " and ", raw.id_bytes));
  }
  if (raw.capacity < 1 || raw.capacity > static_cast<uint64_t>(max_pack_capacity) ||
      raw.alignment < 1 || raw.capacity % raw.alignment != 0) {
    throw InputError(concat(name, ": expected a capacity of at most ", max_pack_capacity,
                            " that is a multiple of the alignment, found ", raw.capacity, " and ",
                            raw.alignment));
  }
  constexpr uint64_t largest = std::numeric_limits<int64_t>::max();
  for (const uint64_t count :
       {raw.num_packs, raw.num_pieces, raw.num_documents, raw.tokens, raw.dropped_documents,
        raw.dropped_tokens, raw.truncated_documents, raw.truncated_tokens}) {
    if (count > largest) throw InputError(concat(name, ": expected counts below 2^63"));
  }
  if (raw.cost_token > max_cost_of_token || raw.cost_square > max_cost_of_square) {
    throw InputError(concat(name, ": expected costs of at most ", max_cost_of_token, " and ",
                            max_cost_of_square, ", found ", raw.cost_token, " and ",
                            raw.cost_square));
  }
  for (const uint64_t zero : raw.zeros) {
    if (zero != 0) throw InputError(concat(name, ": its header is damaged: bytes behind it"));
  }
}

CheckedSize aligned(CheckedSize size) {
  const uint64_t padding = -size.value() % static_cast<uint64_t>(pack_alignment_bytes);
  return size + CheckedSize(padding);
}

template <class Id>
void check_ids(std::span<const std::byte> bytes, const PackFile& file, const std::string& name) {
  const Id* ids = reinterpret_cast<const Id*>(bytes.data() + file.documents_begin);
  for (int64_t i = 0; i < file.num_pieces; ++i) {
    if (ids[i] < 0 || ids[i] >= file.ledger.documents) {
      throw InputError(concat(name, ": expected documents 0 to ", file.ledger.documents - 1,
                              ", found ", ids[i], " at piece ", i));
    }
  }
}

}  // namespace

PackFile parse_pack_file(std::span<const std::byte> bytes, const std::string& name) {
  if (bytes.size() < sizeof(RawHeader) || std::memcmp(bytes.data(), magic, sizeof(magic)) != 0) {
    throw InputError(concat(name, ": is no pack index: expected DSMPACKS and a header"));
  }
  RawHeader raw;
  std::memcpy(&raw, bytes.data(), sizeof(raw));
  if (raw.version != version) {
    throw InputError(concat(name, ": expected pack index version ", version, ", found ",
                            raw.version, ": build the pack index again"));
  }
  check_ranges(raw, name);
  const CheckedSize documents_begin =
      aligned(CheckedSize(sizeof(RawHeader)) + CheckedSize(8) * (CheckedSize(raw.num_packs) + 1));
  const CheckedSize documents_end =
      documents_begin + CheckedSize(raw.id_bytes) * CheckedSize(raw.num_pieces);
  const CheckedSize begins_begin = aligned(documents_end);
  const CheckedSize end =
      raw.has_begins ? begins_begin + CheckedSize(4) * CheckedSize(raw.num_packs) : documents_end;
  if (!end.equals(bytes.size())) {
    throw InputError(concat(name, ": expected ",
                            end.overflowed() ? "more than 2^64" : concat(end.value()),
                            " bytes, found ", bytes.size()));
  }
  PackFile file;
  file.strategy = static_cast<PackStrategy>(raw.strategy);
  file.overlong = static_cast<OverlongPolicy>(raw.overlong);
  file.cost = {raw.cost_token, raw.cost_square};
  file.ledger = {
      static_cast<int64_t>(raw.num_documents),       static_cast<int64_t>(raw.tokens),
      static_cast<int64_t>(raw.dropped_documents),   static_cast<int64_t>(raw.dropped_tokens),
      static_cast<int64_t>(raw.truncated_documents), static_cast<int64_t>(raw.truncated_tokens)};
  file.num_packs = static_cast<int64_t>(raw.num_packs);
  file.num_pieces = static_cast<int64_t>(raw.num_pieces);
  file.capacity = static_cast<int64_t>(raw.capacity);
  file.alignment = raw.alignment;
  file.seed = raw.seed;
  file.epoch = raw.epoch;
  file.id_bytes = raw.id_bytes;
  file.has_begins = raw.has_begins != 0;
  file.lengths_xxh3 = raw.lengths_xxh3;
  file.payload_xxh3 = raw.payload_xxh3;
  file.header_xxh3 = raw.header_xxh3;
  file.documents_begin = static_cast<int64_t>(documents_begin.value());
  file.begins_begin = static_cast<int64_t>(begins_begin.value());
  return file;
}

void check_pack_arrays(std::span<const std::byte> bytes, const std::string& name) {
  const PackFile file = parse_pack_file(bytes, name);
  assert(reinterpret_cast<uintptr_t>(bytes.data()) % 8 == 0);
  const int64_t* offsets = reinterpret_cast<const int64_t*>(bytes.data() + pack_header_bytes);
  bool rises = offsets[0] == 0 && offsets[file.num_packs] == file.num_pieces;
  for (int64_t p = 0; p < file.num_packs; ++p) rises &= offsets[p] < offsets[p + 1];
  if (!rises) {
    throw InputError(concat(name, ": expected pack offsets that rise from 0 to ", file.num_pieces,
                            ", found ", offsets[0], " to ", offsets[file.num_packs]));
  }
  file.id_bytes == 4 ? check_ids<int32_t>(bytes, file, name)
                     : check_ids<int64_t>(bytes, file, name);
  if (!file.has_begins) return;
  const int32_t* begins = reinterpret_cast<const int32_t*>(bytes.data() + file.begins_begin);
  for (int64_t p = 0; p < file.num_packs; ++p) {
    if (begins[p] < 0 || begins[p] % file.alignment != 0) {
      throw InputError(concat(name, ": pack ", p, " begins at token ", begins[p],
                              " of its first document, expected a multiple of the alignment ",
                              file.alignment));
    }
  }
}

void write_pack_header(const PackFile& file, std::span<std::byte> out) {
  assert(out.size() == sizeof(RawHeader));
  RawHeader raw{};
  std::memcpy(raw.magic, magic, sizeof(magic));
  raw.version = version;
  raw.strategy = static_cast<uint32_t>(file.strategy);
  raw.num_packs = static_cast<uint64_t>(file.num_packs);
  raw.num_pieces = static_cast<uint64_t>(file.num_pieces);
  raw.num_documents = static_cast<uint64_t>(file.ledger.documents);
  raw.capacity = static_cast<uint64_t>(file.capacity);
  raw.seed = file.seed;
  raw.epoch = file.epoch;
  raw.alignment = static_cast<uint32_t>(file.alignment);
  raw.overlong = static_cast<uint32_t>(file.overlong);
  raw.cost_token = file.cost.token;
  raw.cost_square = file.cost.square;
  raw.tokens = static_cast<uint64_t>(file.ledger.tokens);
  raw.dropped_documents = static_cast<uint64_t>(file.ledger.dropped_documents);
  raw.dropped_tokens = static_cast<uint64_t>(file.ledger.dropped_tokens);
  raw.truncated_documents = static_cast<uint64_t>(file.ledger.truncated_documents);
  raw.truncated_tokens = static_cast<uint64_t>(file.ledger.truncated_tokens);
  raw.id_bytes = static_cast<uint32_t>(file.id_bytes);
  raw.has_begins = file.has_begins;
  raw.lengths_xxh3 = file.lengths_xxh3;
  raw.payload_xxh3 = file.payload_xxh3;
  raw.header_xxh3 = file.header_xxh3;
  std::memcpy(out.data(), &raw, sizeof(raw));
}

}  // namespace dsm
