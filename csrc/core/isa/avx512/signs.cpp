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

STOMPP_AVX512 void pack_row(const void* x, FloatType type, int64_t K, uint32_t* words) {
  const int64_t whole = K / kWordBits, tail = K % kWordBits;
  if (type == FloatType::kFloat32) {
    const float* values = static_cast<const float*>(x);
    for (int64_t i = 0; i < whole; ++i) words[i] = sign_word_fp32(values + i * kWordBits);
  } else {
    const uint16_t* values = static_cast<const uint16_t*>(x);
    const uint16_t minus_infinity = type == FloatType::kFloat16 ? Float16::kMinusInfinity : BFloat16::kMinusInfinity;
    for (int64_t i = 0; i < whole; ++i) words[i] = sign_word_16(values + i * kWordBits, minus_infinity);
  }
  if (tail != 0) words[whole] = sign_word(x, type, whole * kWordBits, tail);
}

STOMPP_AVX512 void pack_outside(const void* x, FloatType type, const Limits& limits, int64_t K, uint32_t* words) {
  const int64_t whole = K / kWordBits, tail = K % kWordBits;
  float values[kWordBits];
  for (int64_t i = 0; i < whole; ++i) {
    const int64_t first = i * kWordBits;
    const float* row = static_cast<const float*>(x) + first;
    if (type != FloatType::kFloat32) load_floats(x, type, first, kWordBits, values);
    words[i] = outside_word(type == FloatType::kFloat32 ? row : values, limits.low + first, limits.high + first);
  }
  if (tail != 0) words[whole] = outside_word(x, type, limits, whole * kWordBits, tail);
}

constexpr PackKernels faster_pack_kernels() {
  PackKernels kernels = pack_kernels();
  kernels.pack_row = pack_row;
  kernels.pack_outside = pack_outside;
  return kernels;
}

}  // namespace

constexpr PackKernels kPackKernels = faster_pack_kernels();

}  // namespace avx512
}  // namespace stompp

#endif
