// 3 pixels and 32 outputs: 24 sums, the 3 pixels' floats and a vector of weights, of 32 registers.
#include "core/isa/neon/lanes.h"

#if defined(__aarch64__)

#define STOMPP_TARGET

namespace stompp {
namespace neon {
namespace {

struct Lanes {
  using Vector = float32x4_t;
  static constexpr int kPixels = 3, kFloats = 4, kVectors = kPanelOutputs / kFloats;

  static Vector zero() { return vdupq_n_f32(0.0f); }
  static Vector load(const float* p) { return vld1q_f32(p); }
  static Vector broadcast(const float* p) { return vld1q_dup_f32(p); }
  static void store(float* p, Vector v) { vst1q_f32(p, v); }
  static Vector add(Vector a, Vector b) { return vaddq_f32(a, b); }
  static Vector subtract(Vector a, Vector b) { return vsubq_f32(a, b); }
  static Vector multiply(Vector a, Vector b) { return vmulq_f32(a, b); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return vfmaq_f32(c, a, b); }
  static Vector magnitude(Vector x) { return vabsq_f32(x); }
  // Returns b where a is NaN.
  static Vector larger(Vector a, Vector b) { return vmaxnmq_f32(a, b); }
  static uint32_t outside(Vector x, Vector low, Vector high) {
    return vaddvq_u32(vandq_u32(vorrq_u32(vcltq_f32(x, low), vcgtq_f32(x, high)), vld1q_u32(kLaneBits)));
  }
  // For +-0 and NaN either result is allowed.
  static uint32_t negative(Vector x) { return vaddvq_u32(vandq_u32(vcltzq_f32(x), vld1q_u32(kLaneBits))); }
  // True for NaN too.
  static uint32_t not_above(Vector x, Vector y) {
    return vaddvq_u32(vandq_u32(vmvnq_u32(vcgtq_f32(x, y)), vld1q_u32(kLaneBits)));
  }
};

#include "core/float_conv/float_tile_body.h"
#include "core/float_conv/rounded_rows_body.h"
#include "core/float_conv/winograd_body.h"

}  // namespace

constexpr FloatConvKernels kFloatConvKernels = float_conv_kernels();

}  // namespace neon
}  // namespace stompp

#endif
