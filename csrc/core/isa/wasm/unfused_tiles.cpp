// Sums of a pixel and 32 outputs as float32: products are rounded before they are added.
#include "core/isa/wasm/wasm.h"

#if defined(__wasm_simd128__)

#include <wasm_simd128.h>

#define STOMPP_TARGET

namespace stompp {
namespace wasm {
namespace {

struct Lanes {
  using Vector = v128_t;
  static constexpr int kPixels = kUnfusedPixels, kFloats = 4, kVectors = kPanelOutputs / kFloats;

  static Vector zero() { return wasm_f32x4_const_splat(0.0f); }
  static Vector load(const float* p) { return wasm_v128_load(p); }
  static Vector broadcast(const float* p) { return wasm_v128_load32_splat(p); }
  static void store(float* p, Vector v) { wasm_v128_store(p, v); }
  static Vector add(Vector a, Vector b) { return wasm_f32x4_add(a, b); }
  static Vector multiply(Vector a, Vector b) { return wasm_f32x4_mul(a, b); }
  static Vector multiply_add(Vector a, Vector b, Vector c) { return add(multiply(a, b), c); }
  static uint32_t outside(Vector x, Vector low, Vector high) {
    return wasm_i32x4_bitmask(wasm_v128_or(wasm_f32x4_lt(x, low), wasm_f32x4_gt(x, high)));
  }
};

#include "core/float_conv/float_tile_body.h"

}  // namespace

void multiply_unfused(const FloatTile& tile, const FloatTileOut& out) { multiply_tile(tile, out); }
void compare_unfused(const FloatTile& tile, const FloatTileBits& out) { compare_tile(tile, out); }

}  // namespace wasm
}  // namespace stompp

#endif
