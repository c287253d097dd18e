// What is asked of the library that involves no tensor. Plain C functions, which Python calls through ctypes: a library
// without Python in it runs in any process that has torch's libraries.
#include <cstdint>

#include "core/dispatch.h"
#include "core/packed_weight.h"

#define STOMPP_EXPORT extern "C" __attribute__((visibility("default")))

STOMPP_EXPORT const char* stompp_compiler() { return __VERSION__; }

STOMPP_EXPORT int64_t stompp_implementation_count() {
  size_t count = 0;
  stompp::implementations(&count);
  return static_cast<int64_t>(count);
}

// `index` is below the count; best first.
STOMPP_EXPORT const char* stompp_implementation_name(int64_t index) {
  size_t count = 0;
  return stompp::implementations(&count)[index]->name;
}

STOMPP_EXPORT const char* stompp_implementation_description(int64_t index) {
  size_t count = 0;
  return stompp::implementations(&count)[index]->description;
}

STOMPP_EXPORT int stompp_implementation_supported(int64_t index) {
  size_t count = 0;
  return stompp::implementations(&count)[index]->supported() ? 1 : 0;
}

// Null where STOMPP_CPU names one that cannot run here.
STOMPP_EXPORT const char* stompp_active_implementation() {
  const stompp::Implementation* active = stompp::active_implementation();
  return active == nullptr ? nullptr : active->name;
}

// Null, or what is wrong with the name.
STOMPP_EXPORT const char* stompp_select_implementation(const char* name) {
  const stompp::Status status = stompp::select_implementation(name);
  return status.is_ok() ? nullptr : status.message();
}

// Bytes of a weight packed for the active implementation; -1 for a shape that none can have, or without one.
STOMPP_EXPORT int64_t stompp_packed_bytes(int64_t out_channels, int64_t in_channels, int64_t kernel_h, int64_t kernel_w,
                                          int64_t groups) {
  const stompp::WeightShape shape = {out_channels, in_channels, kernel_h, kernel_w, groups};
  const stompp::Implementation* active = stompp::active_implementation();
  if (active == nullptr || !stompp::check_shape(shape).is_ok()) return -1;
  return stompp::packed_bytes(shape, active->layout);
}

// The same of a weight packed for float activations, whatever is active.
STOMPP_EXPORT int64_t stompp_packed_binary_weight_bytes(int64_t out_channels, int64_t in_channels, int64_t kernel_h,
                                                        int64_t kernel_w, int64_t groups) {
  const stompp::WeightShape shape = {out_channels, in_channels, kernel_h, kernel_w, groups};
  return stompp::check_shape(shape).is_ok() ? stompp::packed_bytes(shape, stompp::kFloatInputLayout) : -1;
}
