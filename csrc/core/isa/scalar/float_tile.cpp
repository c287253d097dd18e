// One pixel, output by output. Without the instruction for it a fused multiply-add is a library call.
#include <cmath>
#include <utility>

#include "core/isa/scalar/scalar.h"
#include "core/product/packed_weight.h"

#define STOMPP_TILE
#define STOMPP_TILE_INLINE inline

namespace stompp {
namespace scalar {
struct Lanes {
  using Vector = float;
  static constexpr int kPixels = kTilePixels, kFloats = 1, kVectors = kPanelOutputs;

  static Vector zero() { return 0.0f; }
  static Vector load(const float* p) { return *p; }
  static Vector broadcast(const float* p) { return *p; }
  static void store(float* p, Vector v) { *p = v; }
  static Vector add(Vector a, Vector b) { return a + b; }
  static Vector subtract(Vector a, Vector b) { return a - b; }
  static Vector multiply(Vector a, Vector b) { return a * b; }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return std::fma(a, b, c); }
  static Vector magnitude(Vector x) { return std::fabs(x); }
  // b where a is not a number.
  static Vector larger(Vector a, Vector b) { return a > b ? a : b; }
  static uint32_t outside(Vector x, Vector low, Vector high) { return static_cast<uint32_t>(x < low || x > high); }
  // Of zeros and not a number any.
  static uint32_t negative(Vector x) { return static_cast<uint32_t>(x < 0.0f); }
  // Also where one is not a number.
  static uint32_t not_above(Vector x, Vector y) { return static_cast<uint32_t>(!(x > y)); }
};

#include "core/float_conv/float_tile_body.h"
#include "core/float_conv/winograd_body.h"

}  // namespace scalar
}  // namespace stompp
