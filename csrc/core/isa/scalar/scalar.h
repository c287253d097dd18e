// Portable C++: runs anywhere, and is the fallback that every faster implementation is compared with.
#pragma once

#include "core/isa/implementation.h"

namespace stompp {
namespace scalar {

extern const ProductKernels kProductKernels;
extern const PlaneKernels kPlaneKernels;
extern const PackKernels kPackKernels;
extern const MaskKernels kMaskKernels;
extern const SignedSumKernels kSignedSumKernels;
extern const FloatConvKernels kFloatConvKernels;
extern const Implementation kImplementation;

}  // namespace scalar
}  // namespace stompp
