// x86-64 with AMX's tiles of int8 (Intel Sapphire Rapids and later servers). Binary products of many rows run on tiles:
// bits stay bits in memory, and are expanded in cache to bytes of +1 and -1. Float layers whose weights are split run
// on tiles of bfloat16. Everything else is AVX-512's.
#pragma once

// A compiler that knows AMX comes with an assembler that does.
#if defined(__x86_64__) && __has_include(<amxint8intrin.h>)
#define STOMPP_HAS_AMX 1
#else
#define STOMPP_HAS_AMX 0
#endif

#if STOMPP_HAS_AMX

#include "core/isa/implementation.h"

// Functions carry the target themselves: the files are compiled for the baseline, so nothing leaks into code that an
// older processor runs.
#define STOMPP_AMX __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,gfni,avx2,fma,bmi,bmi2,popcnt")))
#define STOMPP_AMX_INLINE STOMPP_AMX __attribute__((always_inline)) inline

namespace stompp {
namespace amx {

extern const ProductKernels kProductKernels;
extern const FloatConvKernels kFloatConvKernels;
extern const Implementation kImplementation;

Status multiply(const ProductKernels& kernels, const AnyRows& source, int64_t M, const PackedWeight& weight,
                const Epilogue& epilogue, const Parallel& pool);

}  // namespace amx
}  // namespace stompp

#endif
