#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace dsm {

/// A fault of the user's input. The message is one line: what is wrong, in which file, what was
/// expected and what was found. The bindings turn it into dsm_engine.errors.DsmError.
class InputError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// The parts written one after the other.
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

}  // namespace dsm
