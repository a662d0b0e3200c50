#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace dsm {

/// An order of a step's packs that data-parallel rank r of `ranks` takes as entries r, r + ranks,
/// r + 2 * ranks, ...: every rank gets as many packs, the packs of one micro-batch (entries
/// m * ranks to (m + 1) * ranks) cost about the same, and so do the ranks' sums. Packs go by
/// decreasing cost, a row of `ranks` at a time, the dearest of the row to the rank that has the
/// least so far. Deterministic: ties go by position.
///
/// Throws InputError unless the packs can be dealt evenly.
std::vector<int64_t> deal_packs(std::span<const int64_t> costs, int64_t ranks);

}  // namespace dsm
