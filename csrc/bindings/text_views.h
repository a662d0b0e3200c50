#pragma once

#include <pybind11/pybind11.h>

#include <string_view>
#include <vector>

namespace dsm::bindings {

/// The strings' own UTF-8, which lives as long as they do: they must be kept. One with a lone
/// surrogate has none, and is a UnicodeEncodeError.
std::vector<std::string_view> utf8_views(const pybind11::tuple& strings);

}  // namespace dsm::bindings
