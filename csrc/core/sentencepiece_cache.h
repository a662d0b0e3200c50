#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace dsm {

/// The ids of short units seen before: words repeat, so nearly all of a text is found here. An
/// entry is one cache line; a set of two keeps the last two units that met in it. For one thread.
class UnitCache {
 public:
  static constexpr size_t max_unit_bytes = 24;
  static constexpr size_t max_ids = 9;

  /// A unit as numbers, zero behind its end.
  struct Key {
    std::array<uint64_t, 3> words;
    uint8_t num_bytes;

    bool operator==(const Key&) const = default;
  };

  struct alignas(64) Entry {
    std::array<uint64_t, 3> words{};
    std::array<int32_t, max_ids> ids{};
    uint8_t num_bytes = 0;  // 0: empty
    uint8_t num_ids = 0;
  };
  static_assert(sizeof(Entry) == 64);

  UnitCache() : sets_(size_t{1} << set_bits) {}

  /// `at` must have max_unit_bytes readable bytes; 0 < num_bytes <= max_unit_bytes.
  static Key key(const char* at, size_t num_bytes) {
    Key key{.words = {}, .num_bytes = static_cast<uint8_t>(num_bytes)};
    std::memcpy(key.words.data(), at, max_unit_bytes);
    for (size_t i = 0; i < key.words.size(); ++i) {
      const size_t kept = std::clamp<size_t>(num_bytes, 8 * i, 8 * i + 8) - 8 * i;
      key.words[i] &= kept == 8 ? ~uint64_t{0} : (uint64_t{1} << (8 * kept)) - 1;
    }
    return key;
  }

  /// The unit's entry, or nullptr.
  const Entry* find(const Key& key) const {
    for (const Entry& entry : sets_[set_of(key)]) {
      if (entry.num_bytes == key.num_bytes && entry.words == key.words) return &entry;
    }
    return nullptr;
  }

  void insert(const Key& key, std::span<const int32_t> ids) {
    if (ids.size() > max_ids) return;
    std::array<Entry, 2>& set = sets_[set_of(key)];
    set[1] = set[0];
    set[0].words = key.words;
    set[0].num_bytes = key.num_bytes;
    set[0].num_ids = static_cast<uint8_t>(ids.size());
    std::ranges::copy(ids, set[0].ids.begin());
  }

 private:
  static constexpr int set_bits = 15;  // 4 MiB: about a core's second-level cache

  static size_t set_of(const Key& key) {
    const auto& [a, b, c] = key.words;
    uint64_t hash = (a ^ key.num_bytes) * 0x9E3779B97F4A7C15u;
    hash ^= hash >> 32;
    hash = (hash ^ b) * 0xD6E8FEB86659FD93u;
    hash = (hash ^ hash >> 29 ^ c) * 0x9E3779B97F4A7C15u;
    return hash >> (64 - set_bits);
  }

  std::vector<std::array<Entry, 2>> sets_;
};

}  // namespace dsm
