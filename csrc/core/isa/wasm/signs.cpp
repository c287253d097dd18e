#include "core/isa/wasm/lanes.h"

#if defined(__wasm_simd128__)

#define STOMPP_TARGET

namespace stompp {
namespace wasm {
namespace {

#include "core/signs/pack_body.h"

// Returns the signs of 32 consecutive fp32. The comparison is false for NaN and for -0.0.
inline uint32_t sign_word_fp32(const float* x) {
  const v128_t zero = wasm_f32x4_const_splat(0.0f);
  return word_of([&](int i) { return wasm_f32x4_lt(wasm_v128_load(x + i), zero); });
}

// Returns the signs of 32 consecutive 16-bit floats, which are below zero from above -0.0 up to minus infinity.
inline uint32_t sign_word_16(const uint16_t* x, uint16_t minus_infinity) {
  const v128_t minus_zero = wasm_u16x8_const_splat(0x8000), last = wasm_u16x8_splat(minus_infinity);
  const auto negative = [&](int i) {
    const v128_t v = wasm_v128_load(x + i);
    return wasm_v128_and(wasm_u16x8_gt(v, minus_zero), wasm_u16x8_le(v, last));
  };
  return bits_of(negative(0), negative(8)) | bits_of(negative(16), negative(24)) << 16;
}

// Says which of 32 values lie below or above their limits; false for NaN.
inline uint32_t outside_word(const float* x, const float* low, const float* high) {
  return word_of([&](int i) {
    const v128_t v = wasm_v128_load(x + i);
    return wasm_v128_or(wasm_f32x4_lt(v, wasm_v128_load(low + i)), wasm_f32x4_gt(v, wasm_v128_load(high + i)));
  });
}

#include "core/signs/pack_rows_body.h"

}  // namespace

constexpr PackKernels kPackKernels = faster_pack_kernels();

}  // namespace wasm
}  // namespace stompp

#endif
