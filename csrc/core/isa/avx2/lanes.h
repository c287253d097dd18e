// Vectors of floats for bodies that are written once.
#pragma once

#include "core/isa/avx2/vectors.h"

#if defined(__x86_64__)

#include <immintrin.h>

namespace stompp {
namespace avx2 {

// A tile of float_tile_body.h is 3 pixels and 32 outputs: 12 sums, the 3 pixels' floats and a vector of weights fill
// the 16 registers.
struct Lanes {
  using Vector = __m256;
  static constexpr int kPixels = 3, kFloats = 8, kVectors = kPanelOutputs / kFloats;

  STOMPP_AVX2_INLINE static Vector zero() { return _mm256_setzero_ps(); }
  STOMPP_AVX2_INLINE static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  STOMPP_AVX2_INLINE static Vector broadcast(const float* p) { return _mm256_broadcast_ss(p); }
  STOMPP_AVX2_INLINE static void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
  STOMPP_AVX2_INLINE static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  STOMPP_AVX2_INLINE static Vector subtract(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
  STOMPP_AVX2_INLINE static Vector multiply(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  STOMPP_AVX2_INLINE static Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  STOMPP_AVX2_INLINE static Vector magnitude(Vector x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), x); }
  // Returns b where a is NaN.
  STOMPP_AVX2_INLINE static Vector larger(Vector a, Vector b) { return _mm256_max_ps(a, b); }
  STOMPP_AVX2_INLINE static uint32_t outside(Vector x, Vector low, Vector high) {
    const Vector below = _mm256_cmp_ps(x, low, _CMP_LT_OQ), above = _mm256_cmp_ps(x, high, _CMP_GT_OQ);
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_or_ps(below, above)));
  }
  // For +-0 and NaN either result is allowed.
  STOMPP_AVX2_INLINE static uint32_t negative(Vector x) { return static_cast<uint32_t>(_mm256_movemask_ps(x)); }
  // True for NaN too.
  STOMPP_AVX2_INLINE static uint32_t not_above(Vector x, Vector y) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, y, _CMP_NGT_UQ)));
  }
};

}  // namespace avx2
}  // namespace stompp

#endif
