#include <limits>
#include <string>

#include "bindings/core_bindings.h"
#include "bindings/numpy_arrays.h"
#include "core/error.h"
#include "core/pack_index.h"
#include "core/pack_order.h"

namespace dsm::bindings {
namespace {

PackStrategy parse_strategy(const std::string& name) {
  if (name == "random") return PackStrategy::random;
  if (name == "best_fit") return PackStrategy::best_fit;
  throw InputError("unknown packing strategy '" + name + "' (known: best_fit, random)");
}

template <class Id>
py::tuple build_and_release(const PackPlan& plan) {
  Packs<Id> packs;
  {
    py::gil_scoped_release release;
    packs = build_packs<Id>(plan);
  }
  return py::make_tuple(release_to_numpy(std::move(packs.offsets)),
                        release_to_numpy(std::move(packs.documents)));
}

py::tuple build_packs(const Array<int32_t>& lengths, int64_t capacity, const std::string& strategy,
                      uint64_t seed, uint64_t epoch) {
  const PackPlan plan{view(lengths), capacity, parse_strategy(strategy), seed, epoch};
  const bool fits_int32 = lengths.size() <= std::numeric_limits<int32_t>::max();
  return fits_int32 ? build_and_release<int32_t>(plan) : build_and_release<int64_t>(plan);
}

}  // namespace

void bind_packing(py::module_& module) {
  module.def("build_packs", &build_packs, py::arg("lengths").noconvert(), py::arg("capacity"),
             py::arg("strategy"), py::arg("seed"), py::arg("epoch"));

  py::class_<PackOrder>(module, "PackOrder")
      .def(py::init<int64_t, uint64_t>(), py::arg("num_packs"), py::arg("seed"))
      .def("pack_at", &PackOrder::pack_at, py::arg("position"));
}

}  // namespace dsm::bindings
