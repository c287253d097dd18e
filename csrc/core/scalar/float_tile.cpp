// One pixel, output by output. Without the instruction for it a fused multiply-add is a library call.
#include <cmath>
#include <utility>

#include "core/packed_weight.h"
#include "core/scalar/scalar.h"

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
  static Vector multiply(Vector a, Vector b) { return a * b; }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return std::fma(a, b, c); }
  static uint32_t outside(Vector x, Vector low, Vector high) { return static_cast<uint32_t>(x < low || x > high); }
};

#include "core/float_tile_body.h"

}  // namespace scalar
}  // namespace stompp
