// 64-bit Arm: NEON is part of its baseline, so no function needs a target of its own.
#pragma once

#if defined(__aarch64__)

#include "core/isa/implementation.h"

namespace stompp {
namespace neon {

extern const ProductKernels kProductKernels;
extern const PlaneKernels kPlaneKernels;
extern const PackKernels kPackKernels;
extern const MaskKernels kMaskKernels;
extern const SignedSumKernels kSignedSumKernels;
extern const FloatConvKernels kFloatConvKernels;
extern const Implementation kImplementation;

}  // namespace neon
}  // namespace stompp

#endif
