#pragma once

#include "core/pack_index.h"

// The strategies behind build_packs, which has checked the plan before it calls one of them.

namespace dsm {

template <class Id>
Packs<Id> pack_random(const PackPlan& plan, uint64_t key);

template <class Id>
Packs<Id> pack_best_fit(const PackPlan& plan, uint64_t key);

}  // namespace dsm
