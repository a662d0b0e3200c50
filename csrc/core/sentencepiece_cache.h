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
  static constexpr int32_t max_unit_bytes = 24;
  static constexpr size_t max_ids = 9;

  /// A unit as numbers, zero behind its end.
  struct Key {
    uint64_t a;
    uint64_t b;
    uint64_t c;
    uint64_t num_bytes;

    /// `at` must have max_unit_bytes readable bytes; 0 < num_bytes <= max_unit_bytes.
    Key(const char* at, size_t num_bytes)
        : a(word(at, num_bytes)), b(0), c(0), num_bytes(num_bytes) {
      if (num_bytes > 8) b = word(at + 8, num_bytes - 8);
      if (num_bytes > 16) c = word(at + 16, num_bytes - 16);
    }

   private:
    static uint64_t word(const char* at, size_t num_bytes) {
      uint64_t value;
      std::memcpy(&value, at, sizeof(value));
      return num_bytes >= 8 ? value : value & ~(~uint64_t{0} << 8 * num_bytes);
    }
  };

  struct alignas(64) Entry {
    uint64_t a = 0;
    uint64_t b = 0;
    uint64_t c = 0;
    std::array<int32_t, max_ids> ids{};
    uint8_t num_bytes = 0;  // 0: empty
    uint8_t num_ids = 0;
  };
  static_assert(sizeof(Entry) == 64);

  UnitCache() : sets_(size_t{1} << set_bits) {}

  /// Where the key is looked for and kept.
  static int32_t set_of(const Key& key) {
    uint64_t hash = (key.a ^ key.num_bytes) * 0x9E3779B97F4A7C15u;
    hash = (hash ^ hash >> 32 ^ key.b) * 0xD6E8FEB86659FD93u;
    hash = (hash ^ hash >> 29 ^ key.c) * 0x9E3779B97F4A7C15u;
    return static_cast<int32_t>(hash >> (64 - set_bits));
  }

  /// The memory is larger than a core's nearest caches: asked for early, it is there in time.
  void prefetch(int32_t set) const {
    for (const Entry& entry : sets_[static_cast<size_t>(set)]) __builtin_prefetch(&entry);
  }

  /// The unit's entry, or nullptr.
  const Entry* find(const Key& key, int32_t set) const {
    for (const Entry& entry : sets_[static_cast<size_t>(set)]) {
      const uint64_t differ = (entry.a ^ key.a) | (entry.b ^ key.b) | (entry.c ^ key.c);
      if ((differ | (entry.num_bytes ^ key.num_bytes)) == 0) return &entry;
    }
    return nullptr;
  }

  /// Not where the ids are too many for an entry.
  void insert(const Key& key, int32_t set, std::span<const int32_t> ids) {
    if (ids.size() > max_ids) return;
    auto& [recent, older] = sets_[static_cast<size_t>(set)];
    older = recent;
    recent = {.a = key.a, .b = key.b, .c = key.c};
    recent.num_bytes = static_cast<uint8_t>(key.num_bytes);
    recent.num_ids = static_cast<uint8_t>(ids.size());
    std::ranges::copy(ids, recent.ids.begin());
  }

 private:
  static constexpr int set_bits = 15;  // 4 MiB

  std::vector<std::array<Entry, 2>> sets_;
};

}  // namespace dsm
