#include "core/isa/wasm/lanes.h"

#if defined(__wasm_simd128__)

#define STOMPP_TARGET

namespace stompp {
namespace wasm {
namespace {

struct Bytes {
  using Vector = v128_t;

  static Vector zero() { return wasm_i8x16_const_splat(0); }
  static Vector load(const uint8_t* from) { return wasm_v128_load(from); }
  static Vector repeat(const uint8_t* from) { return wasm_v128_load8_splat(from); }

  static Vector add_differing(Vector counts, Vector a, Vector b) {
    return wasm_i8x16_add(counts, wasm_i8x16_popcnt(wasm_v128_xor(a, b)));
  }

  static void subtract_twice(Vector counts, int32_t* dots) {
    const v128_t twice[2] = {wasm_i16x8_shl(wasm_u16x8_extend_low_u8x16(counts), 1),
                             wasm_i16x8_shl(wasm_u16x8_extend_high_u8x16(counts), 1)};
    for (int i = 0; i < 2; ++i) {
      int32_t* at = dots + 8 * i;
      wasm_v128_store(at, wasm_i32x4_sub(wasm_v128_load(at), wasm_u32x4_extend_low_u16x8(twice[i])));
      wasm_v128_store(at + 4, wasm_i32x4_sub(wasm_v128_load(at + 4), wasm_u32x4_extend_high_u16x8(twice[i])));
    }
  }
};

#include "core/product/affine_body.h"
#include "core/product/byte_counts_body.h"

void less_than(const int32_t* acc, int64_t stride, int64_t rows, const int32_t* thresholds, uint32_t* bits) {
  for (int64_t r = 0; r < rows; ++r, acc += stride)
    bits[r] = word_of([&](int i) { return wasm_i32x4_lt(wasm_v128_load(acc + i), wasm_v128_load(thresholds + i)); });
}

constexpr ProductKernels product_kernels() {
  ProductKernels kernels = byte_count_kernels();
  kernels.less_than = less_than;
  kernels.affine = affine;
  return kernels;
}

}  // namespace

constexpr ProductKernels kProductKernels = product_kernels();

}  // namespace wasm
}  // namespace stompp

#endif
