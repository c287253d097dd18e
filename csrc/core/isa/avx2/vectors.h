// Short names for the loads and stores of 256-bit integers.
#pragma once

#include "core/isa/avx2/avx2.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define STOMPP_AVX2_INLINE STOMPP_AVX2 __attribute__((always_inline)) inline

namespace stompp {
namespace avx2 {

STOMPP_AVX2_INLINE __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
STOMPP_AVX2_INLINE __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
STOMPP_AVX2_INLINE void store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
STOMPP_AVX2_INLINE void store128(void* p, __m128i v) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }

// Where weights are read once, from far away: ahead of what the hardware prefetches within a page.
constexpr int64_t kPrefetchBytes = 4096;

}  // namespace avx2
}  // namespace stompp

#endif
