// Vectors of floats for bodies that are written once.
#pragma once

#include "core/isa/avx512/avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

namespace stompp {
namespace avx512 {

// A tile of float_tile_body.h is 12 pixels and 32 outputs: 24 sums, 2 vectors of weights and one of a pixel's floats,
// of 32 registers.
struct Lanes {
  using Vector = __m512;
  static constexpr int kPixels = 12, kFloats = 16, kVectors = kPanelOutputs / kFloats;

  STOMPP_AVX512_INLINE static Vector zero() { return _mm512_setzero_ps(); }
  STOMPP_AVX512_INLINE static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  STOMPP_AVX512_INLINE static Vector broadcast(const float* p) { return _mm512_set1_ps(*p); }
  STOMPP_AVX512_INLINE static void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
  STOMPP_AVX512_INLINE static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
  STOMPP_AVX512_INLINE static Vector subtract(Vector a, Vector b) { return _mm512_sub_ps(a, b); }
  STOMPP_AVX512_INLINE static Vector multiply(Vector a, Vector b) { return _mm512_mul_ps(a, b); }
  STOMPP_AVX512_INLINE static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
  STOMPP_AVX512_INLINE static Vector magnitude(Vector x) { return _mm512_abs_ps(x); }
  // Returns b where a is NaN.
  STOMPP_AVX512_INLINE static Vector larger(Vector a, Vector b) { return _mm512_mask_max_ps(a, 0xffff, a, b); }
  STOMPP_AVX512_INLINE static uint32_t outside(Vector x, Vector low, Vector high) {
    return static_cast<uint32_t>(_mm512_cmp_ps_mask(x, low, _CMP_LT_OQ) | _mm512_cmp_ps_mask(x, high, _CMP_GT_OQ));
  }
  // For +-0 and NaN either result is allowed.
  STOMPP_AVX512_INLINE static uint32_t negative(Vector x) { return _mm512_cmp_ps_mask(x, zero(), _CMP_LT_OQ); }
  // True for NaN too.
  STOMPP_AVX512_INLINE static uint32_t not_above(Vector x, Vector y) { return _mm512_cmp_ps_mask(x, y, _CMP_NGT_UQ); }
};

}  // namespace avx512
}  // namespace stompp

#endif
