// x86-64 with AVX-512 and its 64-bit popcount (Intel Ice Lake and Sapphire Rapids, AMD Zen 4 and later).
#pragma once

#if defined(__x86_64__)

#include "core/isa/implementation.h"

// Functions carry the target themselves: the files are compiled for the baseline, so nothing leaks into code that an
// older processor runs.
#define STOMPP_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx2,fma,bmi,bmi2,popcnt")))
#define STOMPP_AVX512_INLINE STOMPP_AVX512 __attribute__((always_inline)) inline

namespace stompp {
namespace avx512 {

extern const ProductKernels kProductKernels;
extern const PlaneKernels kPlaneKernels;
extern const PackKernels kPackKernels;
extern const MaskKernels kMaskKernels;
extern const SignedSumKernels kSignedSumKernels;
extern const FloatConvKernels kFloatConvKernels;
extern const Implementation kImplementation;

constexpr int64_t kStepBytes = 8;  // of K

void prepare_rows(const RowBlock& rows, void* scratch);
void multiply_block(const ProductBlock& block, const DotsOut& out);
void compare_block(const ProductBlock& block, const BitsOut& out);
void scale_block(const ProductBlock& block, const AffineOut& out);

}  // namespace avx512
}  // namespace stompp

#endif
