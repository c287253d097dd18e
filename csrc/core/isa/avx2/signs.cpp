#include "core/isa/avx2/avx2.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define STOMPP_TARGET STOMPP_AVX2

namespace stompp {
namespace avx2 {
namespace {

#include "core/signs/pack_body.h"

// Returns the signs of 32 consecutive fp32. An ordered comparison is false for NaN and for -0.0 < 0.
STOMPP_AVX2 inline uint32_t sign_word_fp32(const float* x) {
  const __m256 zero = _mm256_setzero_ps();
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const __m256 negative = _mm256_cmp_ps(_mm256_loadu_ps(x + 8 * i), zero, _CMP_LT_OQ);
    word |= static_cast<uint32_t>(_mm256_movemask_ps(negative)) << (8 * i);
  }
  return word;
}

// Returns the signs of 32 consecutive 16-bit floats: as signed integers, those above -32768 (-0.0) and up to minus
// infinity.
STOMPP_AVX2 inline uint32_t sign_word_16(const uint16_t* x, uint16_t minus_infinity) {
  const __m256i minus_zero = _mm256_set1_epi16(static_cast<short>(0x8000));
  const __m256i end = _mm256_set1_epi16(static_cast<short>(minus_infinity + 1));
  __m256i negative[2];
  for (int i = 0; i < 2; ++i) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x + 16 * i));
    negative[i] = _mm256_and_si256(_mm256_cmpgt_epi16(v, minus_zero), _mm256_cmpgt_epi16(end, v));
  }
  // packs works within 128-bit lanes; the permutation puts the four quarters back in order.
  const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(negative[0], negative[1]), 0xd8);
  return static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
}

// Says which of 32 values lie below or above their limits; false for NaN.
STOMPP_AVX2 inline uint32_t outside_word(const float* x, const float* low, const float* high) {
  uint32_t word = 0;
  for (int i = 0; i < 4; ++i) {
    const __m256 value = _mm256_loadu_ps(x + 8 * i);
    const __m256 below = _mm256_cmp_ps(value, _mm256_loadu_ps(low + 8 * i), _CMP_LT_OQ);
    const __m256 above = _mm256_cmp_ps(value, _mm256_loadu_ps(high + 8 * i), _CMP_GT_OQ);
    word |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_or_ps(below, above))) << (8 * i);
  }
  return word;
}

#include "core/signs/pack_rows_body.h"

}  // namespace

constexpr PackKernels kPackKernels = faster_pack_kernels();

}  // namespace avx2
}  // namespace stompp

#endif
