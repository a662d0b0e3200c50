// Times the core without Python, for benchmarks/bench_data.py. Prints one JSON object: seconds of
// each repetition, and what the caller checks against its own work.
//
// core_bench get PREFIX DOCUMENTS REPETITIONS
//   DOCUMENTS: a file of document numbers, int64
//
// core_bench gather PREFIX VOCAB_SIZE CAPACITY PACKS REPETITIONS
//   PACKS.offsets (int64) and PACKS.documents (int32): a pack index
//   PACKS.span_offsets (int64) and PACKS.spans (int32): the dataset's supervised spans

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <exception>
#include <fstream>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/error.h"
#include "core/gather.h"
#include "core/indexed_dataset.h"

namespace {

template <class T>
std::vector<T> read_array(const std::string& path) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) throw dsm::InputError(path + ": cannot be read");
  const auto num_bytes = static_cast<size_t>(file.tellg());
  std::vector<T> values(num_bytes / sizeof(T));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(values.data()),
            static_cast<std::streamsize>(values.size() * sizeof(T)));
  return values;
}

/// Seconds of each call, after one call to warm up.
template <class Call>
std::vector<double> time_calls(int repetitions, const Call& call) {
  call();
  std::vector<double> seconds;
  for (int i = 0; i < repetitions; ++i) {
    const auto started = std::chrono::steady_clock::now();
    call();
    const auto ended = std::chrono::steady_clock::now();
    seconds.push_back(std::chrono::duration<double>(ended - started).count());
  }
  return seconds;
}

void print_seconds(const char* name, const std::vector<double>& seconds) {
  std::printf("\"%s\": [", name);
  for (size_t i = 0; i < seconds.size(); ++i) {
    std::printf("%s%.9g", i == 0 ? "" : ", ", seconds[i]);
  }
  std::printf("], ");
}

/// Sum of (i + 1) * x[i] modulo 2^64: tells arrays apart that differ in a value or in the order.
template <class T>
uint64_t checksum(std::span<const T> values) {
  uint64_t sum = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    sum += (i + 1) * static_cast<uint64_t>(static_cast<int64_t>(values[i]));
  }
  return sum;
}

/// Every document once as a view, as megatron.core gives it, and once copied out of the mapping.
void bench_get(const std::string& prefix, const std::string& documents_path, int repetitions) {
  const dsm::IndexedDataset dataset(prefix);
  const auto documents = read_array<int64_t>(documents_path);
  const int64_t token_bytes = dsm::token_bytes(dataset.token_type());

  uint64_t num_tokens = 0;
  const auto views = time_calls(repetitions, [&] {
    num_tokens = 0;
    for (const int64_t idx : documents) {
      num_tokens += static_cast<uint64_t>(dataset.document(idx).length);
    }
  });

  int64_t longest = 0;
  for (const int64_t idx : documents) longest = std::max(longest, dataset.document(idx).length);
  std::vector<std::byte> copy(static_cast<size_t>(longest * token_bytes));
  uint64_t last_bytes = 0;
  const auto copies = time_calls(repetitions, [&] {
    last_bytes = 0;
    for (const int64_t idx : documents) {
      const dsm::DocumentView document = dataset.document(idx);
      const auto num_bytes = static_cast<size_t>(document.length * token_bytes);
      std::memcpy(copy.data(), document.data, num_bytes);
      if (num_bytes > 0) last_bytes += static_cast<uint64_t>(copy[num_bytes - 1]);
    }
  });

  std::printf("{");
  print_seconds("views", views);
  print_seconds("copies", copies);
  std::printf("\"last_bytes\": %llu, \"num_tokens\": %llu}\n",
              static_cast<unsigned long long>(last_bytes),
              static_cast<unsigned long long>(num_tokens));
}

/// Every pack gathered, in order, into the same buffers, those that follow being asked for ahead.
template <class Index>
std::pair<std::vector<double>, uint64_t> time_gather(const dsm::GatherSource& source,
                                                     std::span<const int64_t> offsets,
                                                     std::span<const int32_t> documents,
                                                     int repetitions) {
  const auto capacity = static_cast<size_t>(source.layout.capacity);
  int64_t max_documents = 0;
  for (size_t p = 0; p + 1 < offsets.size(); ++p) {
    max_documents = std::max(max_documents, offsets[p + 1] - offsets[p]);
  }
  std::vector<Index> tokens(capacity), labels(capacity), position_ids(capacity);
  std::vector<float> loss_weights(capacity);
  std::vector<int32_t> document_ids(capacity), cu_seqlens(static_cast<size_t>(max_documents + 2));
  const dsm::PackedBatchView<Index> out{tokens,       labels,       loss_weights,
                                        position_ids, document_ids, cu_seqlens};
  const size_t num_packs = offsets.size() - 1;
  const auto pack_of = [&](size_t p) {
    return dsm::PackView<int32_t>{
        documents.subspan(static_cast<size_t>(offsets[p]),
                          static_cast<size_t>(offsets[p + 1] - offsets[p])),
        0};
  };
  const auto gather = [&](size_t p) {
    if (p + dsm::entries_ahead < num_packs) {
      dsm::prefetch_entries(source, pack_of(p + dsm::entries_ahead));
    }
    if (p + dsm::tokens_ahead < num_packs) {
      dsm::prefetch_tokens(source, pack_of(p + dsm::tokens_ahead));
    }
    return dsm::gather_pack(source, pack_of(p), out);
  };

  uint64_t work = 0;
  for (size_t p = 0; p < num_packs; ++p) {
    gather(p);
    work += checksum<Index>(tokens) + 3 * checksum<Index>(labels) +
            5 * checksum<float>(loss_weights) + 7 * checksum<Index>(position_ids) +
            11 * checksum<int32_t>(document_ids) + 13 * checksum<int32_t>(cu_seqlens);
  }
  const auto seconds = time_calls(repetitions, [&] {
    for (size_t p = 0; p < num_packs; ++p) gather(p);
  });
  return {seconds, work};
}

void bench_gather(const std::string& prefix, int64_t vocab_size, int64_t capacity,
                  const std::string& packs, int repetitions) {
  const dsm::IndexedDataset dataset(prefix);
  const auto offsets = read_array<int64_t>(packs + ".offsets");
  const auto documents = read_array<int32_t>(packs + ".documents");
  const auto span_offsets = read_array<int64_t>(packs + ".span_offsets");
  const auto spans = read_array<int32_t>(packs + ".spans");
  const dsm::GatherSource source{
      dataset, {span_offsets, spans}, {.capacity = capacity}, vocab_size, 0};

  const auto [wide, wide_work] = time_gather<int64_t>(source, offsets, documents, repetitions);
  const auto [narrow, narrow_work] = time_gather<int32_t>(source, offsets, documents, repetitions);
  std::printf("{");
  print_seconds("int64", wide);
  print_seconds("int32", narrow);
  std::printf("\"checksum_int64\": %llu, \"checksum_int32\": %llu}\n",
              static_cast<unsigned long long>(wide_work),
              static_cast<unsigned long long>(narrow_work));
}

int run(std::span<char*> arguments) {
  const std::string_view what = arguments.size() > 1 ? arguments[1] : "";
  if (what == "get" && arguments.size() == 5) {
    bench_get(arguments[2], arguments[3], std::stoi(arguments[4]));
  } else if (what == "gather" && arguments.size() == 7) {
    bench_gather(arguments[2], std::stoll(arguments[3]), std::stoll(arguments[4]), arguments[5],
                 std::stoi(arguments[6]));
  } else {
    std::fprintf(stderr,
                 "core_bench get PREFIX DOCUMENTS REPETITIONS\n"
                 "core_bench gather PREFIX VOCAB_SIZE CAPACITY PACKS REPETITIONS\n");
    return 2;
  }
  return 0;
}

}  // namespace

int main(int num_arguments, char** arguments) {
  try {
    return run({arguments, static_cast<size_t>(num_arguments)});
  } catch (const std::exception& error) {
    std::fprintf(stderr, "core_bench: %s\n", error.what());
    return 1;
  }
}
