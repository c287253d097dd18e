// Floats are computed as float64, two to a vector: there is no fused multiply-add of float32.
#include "core/isa/wasm/wasm.h"

#if defined(__wasm_simd128__)

#include <wasm_simd128.h>

#define STOMPP_TARGET

namespace stompp {
namespace wasm {
namespace {

// Sums and products of float32 that are rounded to float64 and then to float32 are as if rounded once: float64 has more
// than twice the bits (Figueroa 1995).
struct Lanes {
  using Vector = v128_t;
  static constexpr int kPixels = 1, kFloats = 2, kVectors = kPanelOutputs / kFloats;

  static Vector rounded(Vector v) { return wasm_f64x2_promote_low_f32x4(wasm_f32x4_demote_f64x2_zero(v)); }

  static Vector zero() { return wasm_f64x2_const_splat(0.0); }
  static Vector load(const float* p) { return wasm_f64x2_promote_low_f32x4(wasm_v128_load64_zero(p)); }
  static Vector broadcast(const float* p) { return wasm_f64x2_splat(static_cast<double>(*p)); }
  static void store(float* p, Vector v) { wasm_v128_store64_lane(p, wasm_f32x4_demote_f64x2_zero(v), 0); }
  static Vector add(Vector a, Vector b) { return rounded(wasm_f64x2_add(a, b)); }
  static Vector subtract(Vector a, Vector b) { return rounded(wasm_f64x2_sub(a, b)); }
  static Vector multiply(Vector a, Vector b) { return rounded(wasm_f64x2_mul(a, b)); }
  // The product is exact. See fused_multiply_add of base/fused.h, which this is for two lanes. It is not inlined: the
  // bodies unroll their loops, and would have hundreds of copies.
  __attribute__((noinline)) static Vector multiply_add(Vector a, Vector b, Vector c) {
    const Vector product = wasm_f64x2_mul(a, b), sum = wasm_f64x2_add(product, c);
    const Vector part = wasm_f64x2_sub(sum, product);
    const Vector error = wasm_f64x2_add(wasm_f64x2_sub(product, wasm_f64x2_sub(sum, part)), wasm_f64x2_sub(c, part));
    const Vector inexact = wasm_f64x2_gt(wasm_f64x2_abs(error), zero());
    const Vector beyond = wasm_i64x2_lt(wasm_v128_xor(error, sum), wasm_i64x2_const_splat(0));
    const Vector toward_zero = wasm_i64x2_add(sum, wasm_v128_and(inexact, beyond));
    return rounded(wasm_v128_or(toward_zero, wasm_v128_and(inexact, wasm_i64x2_const_splat(1))));
  }
  static Vector magnitude(Vector x) { return wasm_f64x2_abs(x); }
  // Returns b where a is NaN.
  static Vector larger(Vector a, Vector b) { return wasm_f64x2_pmax(b, a); }
  static uint32_t outside(Vector x, Vector low, Vector high) {
    return wasm_i64x2_bitmask(wasm_v128_or(wasm_f64x2_lt(x, low), wasm_f64x2_gt(x, high)));
  }
  // For +-0 and NaN either result is allowed.
  static uint32_t negative(Vector x) { return wasm_i64x2_bitmask(x); }
  // True for NaN too.
  static uint32_t not_above(Vector x, Vector y) { return wasm_i64x2_bitmask(wasm_v128_not(wasm_f64x2_gt(x, y))); }
};

#include "core/float_conv/float_tile_body.h"
#include "core/float_conv/rounded_rows_body.h"
#include "core/float_conv/winograd_body.h"

constexpr FloatConvKernels with_unfused_tiles() {
  FloatConvKernels kernels = float_conv_kernels();
  kernels.unfused = {kUnfusedPixels, multiply_unfused, compare_unfused};
  return kernels;
}

}  // namespace

constexpr FloatConvKernels kFloatConvKernels = with_unfused_tiles();

}  // namespace wasm
}  // namespace stompp

#endif
