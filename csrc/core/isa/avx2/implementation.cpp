#include "core/isa/avx2/avx2.h"

#if defined(__x86_64__)

#define STOMPP_TARGET STOMPP_AVX2

namespace stompp {
namespace avx2 {
namespace {

#include "core/masks/masks_body.h"
#include "core/product/planes_body.h"

const char* missing() {
  // These builtins also ask the operating system (XGETBV) whether it saves the vector registers.
  __builtin_cpu_init();
  const bool all = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                   __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
  return all ? nullptr : kNoInstructions;
}

constexpr Implementation implementation() {
  Implementation result = {};
  result.name = "avx2";
  result.description = "nibble lookup: popcounts for two rows at once from pshufb tables";
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

}  // namespace avx2
}  // namespace stompp

#endif
