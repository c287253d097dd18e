#include "core/isa/wasm/wasm.h"

#if defined(__wasm_simd128__)

#define STOMPP_TARGET

namespace stompp {
namespace wasm {
namespace {

#include "core/masks/masks_body.h"
#include "core/product/planes_body.h"

// A module with instructions that an engine does not know is not even loaded.
const char* missing() { return nullptr; }

constexpr Implementation implementation() {
  Implementation result = {};
  result.name = "wasm";
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

}  // namespace wasm
}  // namespace stompp

#endif
