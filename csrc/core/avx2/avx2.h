// x86-64 with AVX2 (Intel Haswell, AMD Zen and later).
#pragma once

#if defined(__x86_64__)

#include "core/implementation.h"

// Functions carry the target themselves: the files are compiled for the baseline, so nothing leaks into code that an
// older processor runs.
#define STOMPP_AVX2 __attribute__((target("avx2,fma,bmi,bmi2,popcnt")))

namespace stompp {
namespace avx2 {

extern const Implementation kImplementation;

int64_t scratch_bytes(int64_t k_bytes);
void prepare_rows(const RowBlock& rows, void* scratch);
void multiply_block(const ProductBlock& block);
void multiply_one_row(const ProductBlock& block);  // reads the row itself, not the scratch memory

void pack_row(const void* x, FloatType type, int64_t K, uint32_t* words);

}  // namespace avx2
}  // namespace stompp

#endif
