#include "core/isa/avx512/avx512.h"

#if defined(__x86_64__)

#define STOMPP_TARGET STOMPP_AVX512

namespace stompp {
namespace avx512 {
namespace {

#include "core/masks/masks_body.h"
#include "core/product/planes_body.h"

const char* missing() {
  // These builtins also ask the operating system (XGETBV) whether it saves the vector registers.
  __builtin_cpu_init();
  const bool all = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("bmi") &&
                   __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt");
  return all ? nullptr : kNoInstructions;
}

constexpr Implementation implementation() {
  Implementation result = {};
  result.name = "avx512";
  result.description = "64-bit XOR and popcount of 8 outputs at a time";
  result.missing = missing;
  result.product = &kProductKernels;
  result.planes = &kPlaneKernels;
  result.signs = &kPackKernels;
  result.masks = &kMaskKernels;
  result.signed_sums = &kSignedSumKernels;
  result.float_conv = &kFloatConvKernels;
  return result;
}

}  // namespace

constexpr PlaneKernels kPlaneKernels = plane_kernels();
constexpr MaskKernels kMaskKernels = mask_kernels();
constexpr Implementation kImplementation = implementation();

}  // namespace avx512
}  // namespace stompp

#endif
