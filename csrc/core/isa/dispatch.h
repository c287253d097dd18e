// Which implementation runs: the first of the list that the machine supports, or the one that STOMPP_CPU or select()
// names. A name that is unknown or unsupported is an error, never a silent fallback.
#pragma once

#include <cstddef>

#include "core/base/status.h"
#include "core/isa/implementation.h"

namespace stompp {

// Every implementation compiled in, best first.
const Implementation* const* implementations(size_t* count);

// nullptr when STOMPP_CPU names none that can run; select() with a good name mends it.
const Implementation* active_implementation();

inline bool is_supported(const Implementation& implementation) { return implementation.missing() == nullptr; }

// Forces the implementation of this name for the whole process; nullptr or "" goes back to the best supported one.
Status select_implementation(const char* name);

// The same for one that is not listed, which must outlive its use: tests run emulated ones.
void select_implementation(const Implementation& implementation);

// While it lives, the calling thread runs this implementation, whatever others do: networks that were packed for
// different ones run side by side.
class UseImplementation {
 public:
  explicit UseImplementation(const Implementation& implementation);
  ~UseImplementation();
  UseImplementation(const UseImplementation&) = delete;

 private:
  const Implementation* before_;
};

}  // namespace stompp
