// XOR and byte popcount. Weights lie as bytes [k][32 outputs]: two vectors hold 8 products of 32 outputs, and a row's
// byte is broadcast against them. That is 3 instructions per 128 products.
#include "core/isa/wasm/wasm.h"

#if defined(__wasm_simd128__)

#include <wasm_simd128.h>

namespace stompp {
namespace wasm {
namespace {

constexpr int kTileRows = 4;
constexpr int kVectors = static_cast<int>(kPanelOutputs) / 16;

// A byte adds at most 8 to a count: 31 * 8 = 248 fits 8 bits.
constexpr int64_t kChunkBytes = 31;
static_assert(kChunkBytes * 8 <= 255, "counts must not wrap");

// Subtracts twice the counts of 16 outputs from their dot products.
inline void subtract16(v128_t counts, int32_t* dots) {
  const v128_t twice[2] = {wasm_i16x8_shl(wasm_u16x8_extend_low_u8x16(counts), 1),
                           wasm_i16x8_shl(wasm_u16x8_extend_high_u8x16(counts), 1)};
  for (int i = 0; i < 2; ++i) {
    int32_t* at = dots + 8 * i;
    wasm_v128_store(at, wasm_i32x4_sub(wasm_v128_load(at), wasm_u32x4_extend_low_u16x8(twice[i])));
    wasm_v128_store(at + 4, wasm_i32x4_sub(wasm_v128_load(at + 4), wasm_u32x4_extend_high_u16x8(twice[i])));
  }
}

template <int kRows>
void multiply_tile(const uint8_t* const* rows, const uint8_t* panel, int64_t k_bytes, int64_t r, int64_t p,
                   const DotsOut& out) {
  int32_t* dots = out.dots + r * out.stride + p * kPanelOutputs;
  for (int i = 0; i < kRows; ++i)
    std::memcpy(dots + i * out.stride, out.starts[r + i] + p * kPanelOutputs, kPanelOutputs * sizeof(int32_t));
  for (int64_t k = 0; k < k_bytes;) {
    const int64_t end = k_bytes - k < kChunkBytes ? k_bytes : k + kChunkBytes;
    v128_t counts[kRows][kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) counts[i][v] = wasm_i8x16_const_splat(0);
    for (; k < end; ++k, panel += kPanelOutputs) {
      const v128_t w[kVectors] = {wasm_v128_load(panel), wasm_v128_load(panel + 16)};
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        const v128_t a = wasm_v128_load8_splat(rows[r + i] + k);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v)
          counts[i][v] = wasm_i8x16_add(counts[i][v], wasm_i8x16_popcnt(wasm_v128_xor(a, w[v])));
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) subtract16(counts[i][v], dots + i * out.stride + 16 * v);
  }
}

}  // namespace

void multiply_block(const ProductBlock& block, const DotsOut& out) {
  const uint8_t* const* rows = whole_rows(block.scratch);
  const int64_t count = block.rows.row_count, k_bytes = block.rows.k_bytes;
  for (int64_t p = 0; p < block.panel_count; ++p) {
    const uint8_t* panel = block.panels + p * k_bytes * kPanelOutputs;
    int64_t r = 0;
    for (; r + kTileRows <= count; r += kTileRows) multiply_tile<kTileRows>(rows, panel, k_bytes, r, p, out);
    for (; r < count; ++r) multiply_tile<1>(rows, panel, k_bytes, r, p, out);
  }
}

}  // namespace wasm
}  // namespace stompp

#endif
