#include "core/isa/avx512/avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define STOMPP_TARGET STOMPP_AVX512

namespace stompp {
namespace avx512 {
namespace {

#include "core/signs/pack_body.h"

// Returns the signs of 32 consecutive fp32. An ordered comparison is false for NaN and for -0.0 < 0.
STOMPP_AVX512_INLINE uint32_t sign_word_fp32(const float* x) {
  const __m512 zero = _mm512_setzero_ps();
  const uint32_t low = _mm512_cmp_ps_mask(_mm512_loadu_ps(x), zero, _CMP_LT_OQ);
  const uint32_t high = _mm512_cmp_ps_mask(_mm512_loadu_ps(x + 16), zero, _CMP_LT_OQ);
  return low | high << 16;
}

// Returns the signs of 32 consecutive 16-bit floats: as signed integers, those above -32768 (-0.0) and up to minus
// infinity.
STOMPP_AVX512_INLINE uint32_t sign_word_16(const uint16_t* x, uint16_t minus_infinity) {
  const __m512i v = _mm512_loadu_si512(x);
  const __mmask32 above_minus_zero = _mm512_cmpgt_epi16_mask(v, _mm512_set1_epi16(static_cast<short>(0x8000)));
  return _mm512_mask_cmple_epi16_mask(above_minus_zero, v, _mm512_set1_epi16(static_cast<short>(minus_infinity)));
}

// Says which of 32 values lie below or above their limits; false for NaN.
STOMPP_AVX512_INLINE uint32_t outside_word(const float* x, const float* low, const float* high) {
  uint32_t word = 0;
  for (int i = 0; i < 2; ++i) {
    const __m512 value = _mm512_loadu_ps(x + 16 * i);
    const uint32_t below = _mm512_cmp_ps_mask(value, _mm512_loadu_ps(low + 16 * i), _CMP_LT_OQ);
    const uint32_t above = _mm512_cmp_ps_mask(value, _mm512_loadu_ps(high + 16 * i), _CMP_GT_OQ);
    word |= (below | above) << (16 * i);
  }
  return word;
}

#include "core/signs/pack_rows_body.h"

}  // namespace

constexpr PackKernels kPackKernels = faster_pack_kernels();

}  // namespace avx512
}  // namespace stompp

#endif
