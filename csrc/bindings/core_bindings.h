#pragma once

#include <pybind11/pybind11.h>

// One function a topic, each in a file of its name; core_module.cpp calls them all.

namespace dsm::bindings {

void bind_packing(pybind11::module_& module);
void bind_datasets(pybind11::module_& module);
void bind_sidecars(pybind11::module_& module);
void bind_gather(pybind11::module_& module);
void bind_operators(pybind11::module_& module);
void bind_tokenizers(pybind11::module_& module);
void bind_texts(pybind11::module_& module);

}  // namespace dsm::bindings
