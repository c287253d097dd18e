// WebAssembly with 128-bit vectors. A module has instructions or has not, so a compiler that is told -msimd128 makes
// them the baseline and no function needs a target of its own.
#pragma once

#if defined(__wasm_simd128__)

#include "core/isa/implementation.h"

namespace stompp {
namespace wasm {

extern const ProductKernels kProductKernels;
extern const PlaneKernels kPlaneKernels;
extern const PackKernels kPackKernels;
extern const MaskKernels kMaskKernels;
extern const SignedSumKernels kSignedSumKernels;
extern const FloatConvKernels kFloatConvKernels;
extern const Implementation kImplementation;

constexpr int kUnfusedPixels = 1;
void multiply_unfused(const FloatTile& tile, const FloatTileOut& out);
void compare_unfused(const FloatTile& tile, const FloatTileBits& out);

}  // namespace wasm
}  // namespace stompp

#endif
