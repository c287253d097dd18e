// Comparisons of lanes to bits.
#pragma once

#include "core/isa/wasm/wasm.h"

#if defined(__wasm_simd128__)

#include <wasm_simd128.h>

namespace stompp {
namespace wasm {

// Returns a bit of each lane of comparisons of 16-bit lanes, and of 32-bit ones. Narrowing saturates: 0 and -1 stay.
inline uint32_t bits_of(v128_t low, v128_t high) {
  return static_cast<uint32_t>(wasm_i8x16_bitmask(wasm_i8x16_narrow_i16x8(low, high)));
}

inline uint32_t bits_of(v128_t a, v128_t b, v128_t c, v128_t d) {
  return bits_of(wasm_i16x8_narrow_i32x4(a, b), wasm_i16x8_narrow_i32x4(c, d));
}

// Returns a bit for each of 32 lanes, `lanes(i)` being what is compared of lanes i .. i + 3.
template <class Lanes>
inline uint32_t word_of(const Lanes& lanes) {
  return bits_of(lanes(0), lanes(4), lanes(8), lanes(12)) | bits_of(lanes(16), lanes(20), lanes(24), lanes(28)) << 16;
}

}  // namespace wasm
}  // namespace stompp

#endif
