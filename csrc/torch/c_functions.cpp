// What Python asks of the library that involves no tensor, through ctypes. The calls are rare ones: when the package is
// imported, an implementation is forced or a graph is traced. Those that can fail return null or what is wrong.
#include "core/float_conv/kernels.h"
#include "core/isa/dispatch.h"
#include "core/product/packed_weight.h"

#define STOMPP_EXPORT extern "C" __attribute__((visibility("default")))

STOMPP_EXPORT const char* stompp_compiler() { return __VERSION__; }

// Describes implementation `index`, counted from the best, and returns 0 where there is none. `missing` is why it
// cannot run here, null if it can.
STOMPP_EXPORT int stompp_implementation(size_t index, const char** name, const char** description,
                                        const char** missing) {
  size_t count = 0;
  const stompp::Implementation* const* list = stompp::implementations(&count);
  if (index >= count) return 0;
  *name = list[index]->name;
  *description = list[index]->description;
  *missing = list[index]->missing();
  return 1;
}

// Returns null where STOMPP_CPU names none that can run.
STOMPP_EXPORT const char* stompp_active_implementation() {
  const stompp::Implementation* active = stompp::active_implementation();
  return active == nullptr ? nullptr : active->name;
}

STOMPP_EXPORT const char* stompp_select_implementation(const char* name) {
  const stompp::Status status = stompp::select_implementation(name);
  return status.is_ok() ? nullptr : status.message();
}

// Gives the bytes of a weight as it is packed for binary inputs by the active implementation, or for floats.
STOMPP_EXPORT const char* stompp_packed_bytes(int64_t out_channels, int64_t in_channels, int64_t kernel_h,
                                              int64_t kernel_w, int64_t groups, int for_floats, int64_t* bytes) {
  const stompp::WeightShape shape = {out_channels, in_channels, kernel_h, kernel_w, groups};
  const stompp::Status status = stompp::check_shape(shape);
  if (!status.is_ok()) return status.message();
  const stompp::Implementation* active = stompp::active_implementation();
  if (active == nullptr) return stompp::no_implementation().message();
  *bytes = stompp::packed_bytes(shape, for_floats ? stompp::kFloatInputLayout : active->product->layout);
  return nullptr;
}

// Says whether the active implementation multiplies bfloat16 by instructions of its own.
STOMPP_EXPORT int stompp_multiplies_bfloat16() {
  const stompp::FloatConvKernels* active = stompp::active_float_conv_kernels();
  return active != nullptr && active->bf16.multiply != nullptr;
}
