#include "core/isa/scalar/scalar.h"

#define STOMPP_TARGET

namespace stompp {
namespace scalar {
namespace {

#include "core/masks/masks_body.h"
#include "core/product/planes_body.h"

const char* missing() { return nullptr; }

constexpr Implementation implementation() {
  Implementation result = {};
  result.name = "scalar";
  result.description = "portable C++, 32-bit XNOR + popcount";
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

}  // namespace scalar
}  // namespace stompp
