#include "core/pack_strategies.h"
#include "core/stream_packers.h"

namespace dsm {
namespace {

template <class Id, class Step>
void run(const PackInput& input, Step step, Packs<Id>& packs) {
  visit_documents(input, step);
  packs.offsets[step.num_packs()] = step.num_pieces();
  packs.offsets.shorten(step.num_packs() + 1);
  packs.documents.shorten(step.num_pieces());
  if (packs.begins.size() > 0) packs.begins.shorten(step.num_packs());
}

}  // namespace

template <class Id>
Packs<Id> pack_random(const PackInput& input) {
  Packs<Id> packs;
  packs.offsets = Buffer<int64_t>(input.max_packs() + 1, input.arena);
  packs.documents = Buffer<Id>(input.num_kept + 1, input.arena);
  const NextFitStep<Id> step(input.capacity, packs.offsets.data(), packs.documents.data());
  if (input.num_kept < input.num_documents()) {
    run(input, SkipLeftOut(step), packs);
  } else {
    run(input, step, packs);
  }
  return packs;
}

template <class Id>
Packs<Id> pack_concat_split(const PackInput& input) {
  const int64_t num_packs = (input.total_slots + input.capacity - 1) / input.capacity;
  Packs<Id> packs;
  packs.offsets = Buffer<int64_t>(num_packs + 1, input.arena);
  packs.begins = Buffer<int32_t>(num_packs + 1, input.arena);
  packs.documents = Buffer<Id>(input.num_kept + num_packs + 1, input.arena);
  int64_t* offsets = packs.offsets.data();
  if (input.longest > input.capacity) {
    run(input,
        LongCutStep<Id>(input.capacity, offsets, packs.documents.data(), packs.begins.data()),
        packs);
  } else {
    run(input, CutStep<Id>(input.capacity, offsets, packs.documents.data(), packs.begins.data()),
        packs);
  }
  return packs;
}

template Packs<int32_t> pack_random(const PackInput&);
template Packs<int64_t> pack_random(const PackInput&);
template Packs<int32_t> pack_concat_split(const PackInput&);
template Packs<int64_t> pack_concat_split(const PackInput&);

}  // namespace dsm
