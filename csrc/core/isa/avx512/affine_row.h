// The affine epilogue of floats, of a panel's 32 outputs of a row at a time.
#pragma once

#include "core/isa/avx512/avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "core/product/kernels.h"

namespace stompp {
namespace avx512 {

constexpr int kHalf = 16;   // outputs
constexpr int kHalves = 2;  // of a panel

struct AffineRow {
  const AffineOut& out;

  // Dot products of row r with panel p.
  STOMPP_AVX512_INLINE void finish(int64_t r, int64_t p, __m512i first_dots, __m512i last_dots) const {
    const int64_t n = p * kPanelOutputs, at = r * out.stride + n;
    const __m512i dots[kHalves] = {first_dots, last_dots};
    __m512 y[kHalves];
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) y[h] = values(dots[h], n + kHalf * h, at + kHalf * h);
    if (out.rprelu.before != nullptr) {
#pragma GCC unroll 2
      for (int h = 0; h < kHalves; ++h) y[h] = rprelu(y[h], n + kHalf * h);
    }
    if (out.words != nullptr) out.words[r * out.word_stride + p] = signs(y[0], n) | signs(y[1], n + kHalf) << kHalf;
    if (out.out == nullptr) return;
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) _mm512_storeu_ps(out.out + at + kHalf * h, y[h]);
  }

 private:
  STOMPP_AVX512_INLINE __m512 multiply_add(__m512 x, const float* scale, const float* bias) const {
    const __m512 s = _mm512_loadu_ps(scale), b = _mm512_loadu_ps(bias);
    return out.fused ? _mm512_fmadd_ps(x, s, b) : _mm512_add_ps(_mm512_mul_ps(x, s), b);
  }
  // The outputs from n on, of which the residual's first is element `at`.
  STOMPP_AVX512_INLINE __m512 values(__m512i dots, int64_t n, int64_t at) const {
    const __m512 y = multiply_add(_mm512_maskz_cvtepi32_ps(0xffff, dots), out.scale + n, out.bias + n);
    if (out.residual == nullptr) return y;
    const __m512 x = _mm512_loadu_ps(out.residual + at);
    if (out.residual_scale == nullptr) return _mm512_add_ps(y, x);
    return _mm512_add_ps(y, multiply_add(x, out.residual_scale + n, out.residual_bias + n));
  }
  // The outputs from n on behind the RPReLU.
  STOMPP_AVX512_INLINE __m512 rprelu(__m512 y, int64_t n) const {
    const __m512 t = _mm512_add_ps(y, _mm512_loadu_ps(out.rprelu.before + n));
    const __m512 negative = _mm512_mul_ps(t, _mm512_loadu_ps(out.rprelu.slope + n));
    const __m512 bent = _mm512_mask_blend_ps(_mm512_cmp_ps_mask(t, _mm512_setzero_ps(), _CMP_GT_OQ), negative, t);
    return _mm512_add_ps(bent, _mm512_loadu_ps(out.rprelu.after + n));
  }
  // Bit i: output n + i has the sign -1.
  STOMPP_AVX512_INLINE uint32_t signs(__m512 y, int64_t n) const {
    if (out.limits.low == nullptr) return _mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_LT_OQ);
    const uint32_t below = _mm512_cmp_ps_mask(y, _mm512_loadu_ps(out.limits.low + n), _CMP_LT_OQ);
    return below | _mm512_cmp_ps_mask(y, _mm512_loadu_ps(out.limits.high + n), _CMP_GT_OQ);
  }
};

}  // namespace avx512
}  // namespace stompp

#endif
