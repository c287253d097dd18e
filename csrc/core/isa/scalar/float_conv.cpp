// One pixel, output by output. Without the instruction for it a fused multiply-add is a library call.
#include <cmath>

#include "core/isa/scalar/scalar.h"

#define STOMPP_TARGET

namespace stompp {
namespace scalar {
namespace {

struct Lanes {
  using Vector = float;
  static constexpr int kPixels = 1, kFloats = 1, kVectors = kPanelOutputs;

  static Vector zero() { return 0.0f; }
  static Vector load(const float* p) { return *p; }
  static Vector broadcast(const float* p) { return *p; }
  static void store(float* p, Vector v) { *p = v; }
  static Vector add(Vector a, Vector b) { return a + b; }
  static Vector subtract(Vector a, Vector b) { return a - b; }
  static Vector multiply(Vector a, Vector b) { return a * b; }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return std::fma(a, b, c); }
  static Vector magnitude(Vector x) { return std::fabs(x); }
  // Returns b where a is NaN.
  static Vector larger(Vector a, Vector b) { return a > b ? a : b; }
  static uint32_t outside(Vector x, Vector low, Vector high) { return static_cast<uint32_t>(x < low || x > high); }
  // For +-0 and NaN either result is allowed.
  static uint32_t negative(Vector x) { return static_cast<uint32_t>(x < 0.0f); }
  // True for NaN too.
  static uint32_t not_above(Vector x, Vector y) { return static_cast<uint32_t>(!(x > y)); }
};

#include "core/float_conv/float_tile_body.h"
#include "core/float_conv/rounded_rows_body.h"
#include "core/float_conv/winograd_body.h"

}  // namespace

constexpr FloatConvKernels kFloatConvKernels = float_conv_kernels();

}  // namespace scalar
}  // namespace stompp
