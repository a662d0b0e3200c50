#include "core/pack_index.h"

#include <algorithm>
#include <cassert>
#include <limits>

#include "core/document_shuffle.h"
#include "core/error.h"
#include "core/pack_strategies.h"
#include "core/parallel.h"
#include "core/random.h"
#include "core/vector_loops.h"

namespace dsm {
namespace {

/// Below it, starting threads costs more than they save.
constexpr int64_t documents_worth_a_thread = 500'000;

[[noreturn]] void throw_empty_document(std::span<const int32_t> lengths) {
  const auto is_empty = [](int32_t length) { return length <= 0; };
  const auto first = std::find_if(lengths.begin(), lengths.end(), is_empty);
  throw InputError(concat("cannot pack: document ", first - lengths.begin(), " has ", *first,
                          " tokens, and so ", std::count_if(first, lengths.end(), is_empty), " of ",
                          lengths.size(), " documents are empty; drop them first"));
}

[[noreturn]] void throw_overlong_document(const PackPlan& plan) {
  const std::span<const int32_t> lengths = plan.lengths;
  const auto is_overlong = [&](int32_t length) { return length > plan.capacity; };
  const auto first = std::find_if(lengths.begin(), lengths.end(), is_overlong);
  throw InputError(concat("cannot pack: document ", first - lengths.begin(), " has ", *first,
                          " tokens, more than a pack of ", plan.capacity, "; ",
                          std::count_if(first, lengths.end(), is_overlong), " of ", lengths.size(),
                          " documents are too long: raise the capacity, or choose the overlong "
                          "policy drop or truncate"));
}

void check_ranges(const PackPlan& plan) {
  if (plan.capacity < 1 || plan.capacity > max_pack_capacity) {
    throw InputError(concat("cannot pack: the capacity must be 1 to ", max_pack_capacity,
                            " tokens, found ", plan.capacity));
  }
  if (plan.alignment < 1 || plan.capacity % plan.alignment != 0) {
    throw InputError(concat("cannot pack: the capacity must be a multiple of the alignment, found ",
                            plan.capacity, " and ", plan.alignment));
  }
  if (plan.threads < 1 || plan.threads > 1024) {
    throw InputError(concat("cannot pack: threads must be 1 to 1024, found ", plan.threads));
  }
  if (plan.strategy == PackStrategy::balanced &&
      (plan.cost.token + plan.cost.square == 0 || plan.cost.token > max_cost_of_token ||
       plan.cost.square > max_cost_of_square)) {
    throw InputError(
        concat("cannot pack: the cost of a token must be 0 to 2^31 and of a squared "
               "length 0 to 128, not both 0, found ",
               plan.cost.token, " and ", plan.cost.square));
  }
  if (plan.overlong > OverlongPolicy::truncate) {
    throw InputError("cannot pack: unknown overlong policy");
  }
}

LengthRange summarize(std::span<const int32_t> lengths, int threads) {
  const int64_t n = static_cast<int64_t>(lengths.size());
  if (n == 0) return {1, 0, 0};
  std::vector<LengthRange> parts(static_cast<size_t>(threads));
  for_each_part(threads, threads, [&](int64_t part) {
    const int64_t first = part_begin(n, threads, part);
    const int64_t count = part_begin(n, threads, part + 1) - first;
    parts[static_cast<size_t>(part)] = range_of_lengths(lengths.data() + first, count);
  });
  LengthRange whole = parts.front();
  for (size_t i = 1; i < parts.size(); ++i) {
    whole.shortest = std::min(whole.shortest, parts[i].shortest);
    whole.longest = std::max(whole.longest, parts[i].longest);
    whole.total += parts[i].total;
  }
  return whole;
}

/// Counts what the plan's alignment and policy do to the documents.
void apply_policies(const PackPlan& plan, PackInput& input, PackLedger& ledger) {
  const bool splits = plan.strategy == PackStrategy::concat_split;
  const bool drops = plan.overlong == OverlongPolicy::drop;
  const int64_t longest =
      splits ? std::numeric_limits<int32_t>::max() / plan.alignment * plan.alignment
             : plan.capacity;
  input.is_plain = false;
  input.policy = {plan.lengths.data(), static_cast<uint32_t>(plan.alignment),
                  static_cast<int32_t>(longest), drops ? 0 : static_cast<int32_t>(plan.capacity)};
  input.total_slots = 0;
  input.longest = 0;
  for (int64_t i = 0; i < input.num_documents(); ++i) {
    const int64_t length = plan.lengths[static_cast<size_t>(i)];
    if (length > longest) {
      if (splits) {
        throw InputError(concat("cannot pack: document ", i, " has ", length,
                                " tokens, too many to align to ", plan.alignment));
      }
      if (plan.overlong == OverlongPolicy::error) throw_overlong_document(plan);
      ledger.dropped_documents += drops;
      ledger.dropped_tokens += drops ? length : 0;
      ledger.truncated_documents += !drops;
      ledger.truncated_tokens += drops ? 0 : length - plan.capacity;
    }
    const int32_t slots = input.policy(i);
    input.total_slots += slots;
    input.longest = std::max(input.longest, slots);
  }
  input.num_kept = input.num_documents() - ledger.dropped_documents;
}

template <class Id>
Packs<Id> run_strategy(PackStrategy strategy, const PackInput& input) {
  switch (strategy) {
    case PackStrategy::random:
      return pack_random<Id>(input);
    case PackStrategy::best_fit:
      return pack_best_fit<Id>(input);
    case PackStrategy::concat_split:
      return pack_concat_split<Id>(input);
    case PackStrategy::first_fit_shuffle:
      return pack_first_fit<Id>(input);
    case PackStrategy::balanced:
      return pack_balanced<Id>(input);
  }
  throw InputError("cannot pack: unknown strategy");
}

}  // namespace

template <class Id>
Packs<Id> build_packs(const PackPlan& plan) {
  assert(plan.lengths.size() <= static_cast<size_t>(std::numeric_limits<Id>::max()));
  check_ranges(plan);
  const int64_t n = static_cast<int64_t>(plan.lengths.size());
  const int threads =
      static_cast<int>(std::clamp<int64_t>(n / documents_worth_a_thread, 1, plan.threads));
  if (n > StreamEntry::max_documents) {
    throw InputError(concat("cannot pack: more than ", StreamEntry::max_documents, " documents"));
  }
  const LengthRange summary = summarize(plan.lengths, threads);
  if (summary.shortest <= 0) throw_empty_document(plan.lengths);

  PackLedger ledger{.documents = n, .tokens = summary.total};
  PackInput input{.lengths = plan.lengths,
                  .num_kept = n,
                  .total_slots = summary.total,
                  .longest = summary.longest,
                  .capacity = plan.capacity,
                  .cost = plan.cost,
                  .key = derive_key({plan.seed, plan.epoch}),
                  .threads = threads,
                  .arena = plan.arena};
  const bool splits = plan.strategy == PackStrategy::concat_split;
  if (plan.alignment > 1 || (summary.longest > plan.capacity && !splits)) {
    apply_policies(plan, input, ledger);
  }
  Packs<Id> packs = run_strategy<Id>(plan.strategy, input);
  packs.ledger = ledger;
  return packs;
}

template Packs<int32_t> build_packs(const PackPlan&);
template Packs<int64_t> build_packs(const PackPlan&);

}  // namespace dsm
