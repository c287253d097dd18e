// x86-64 with AVX2 (Intel Haswell, AMD Zen and later).
#pragma once

#if defined(__x86_64__)

#include "core/isa/implementation.h"

// Functions carry the target themselves: the files are compiled for the baseline, so nothing leaks into code that an
// older processor runs.
#define STOMPP_AVX2 __attribute__((target("avx2,fma,bmi,bmi2,popcnt")))

namespace stompp {
namespace avx2 {

extern const ProductKernels kProductKernels;
extern const PlaneKernels kPlaneKernels;
extern const PackKernels kPackKernels;
extern const MaskKernels kMaskKernels;
extern const SignedSumKernels kSignedSumKernels;
extern const FloatConvKernels kFloatConvKernels;
extern const Implementation kImplementation;

// Three ways to compute a product; see ProductKernels and choose.h.
int64_t block_scratch_bytes(int64_t k_bytes);
void prepare_block(const RowBlock& rows, void* scratch);
void multiply_block(const ProductBlock& block, const DotsOut& out);
void compare_block(const ProductBlock& block, const BitsOut& out);
void scale_block(const ProductBlock& block, const AffineOut& out);

int64_t few_rows_scratch_bytes(int64_t k_bytes);
void prepare_few_rows(const RowBlock& rows, void* scratch);
void multiply_few_rows(const ProductBlock& block, const DotsOut& out);
void compare_few_rows(const ProductBlock& block, const BitsOut& out);
void scale_few_rows(const ProductBlock& block, const AffineOut& out);

int64_t one_row_scratch_bytes(int64_t k_bytes);
void prepare_one_row(const RowBlock& rows, void* scratch);
void multiply_one_row(const ProductBlock& block, const DotsOut& out);
void compare_one_row(const ProductBlock& block, const BitsOut& out);

void less_than(const int32_t* acc, int64_t stride, int64_t rows, const int32_t* thresholds, uint32_t* bits);

}  // namespace avx2
}  // namespace stompp

#endif
