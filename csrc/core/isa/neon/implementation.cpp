#include "core/isa/neon/neon.h"

#if defined(__aarch64__)

#define STOMPP_TARGET

namespace stompp {
namespace neon {
namespace {

#include "core/masks/masks_body.h"
#include "core/product/planes_body.h"

const char* missing() { return nullptr; }

constexpr Implementation implementation() {
  Implementation result = {};
  result.name = "neon";
  result.description = "byte XOR and popcount of 16 outputs at a time";
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

}  // namespace neon
}  // namespace stompp

#endif
