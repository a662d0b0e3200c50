// dsm_engine._core: the C++ core for Python. Long calls release the GIL.

#include <pybind11/pybind11.h>

#include "bindings/core_bindings.h"
#include "core/error.h"

namespace py = pybind11;

namespace {

void register_dsm_error() {
  // Leaked on purpose: the translator outlives the interpreter's modules.
  static const auto* dsm_error =
      new py::object(py::module_::import("dsm_engine.errors").attr("DsmError"));
  py::register_local_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const dsm::InputError& error) {
      py::set_error(*dsm_error, error.what());
    }
  });
}

}  // namespace

PYBIND11_MODULE(_core, module) {
  module.doc() = "The C++ core of dsm_engine; use it through dsm_engine.data and dsm_engine.ops.";
  register_dsm_error();
  dsm::bindings::bind_packing(module);
  dsm::bindings::bind_datasets(module);
  dsm::bindings::bind_sidecars(module);
  dsm::bindings::bind_gather(module);
  dsm::bindings::bind_operators(module);
  dsm::bindings::bind_tokenizers(module);
  dsm::bindings::bind_texts(module);
}
