// XOR and byte popcount (cnt). Weights lie as bytes [k][32 outputs]: two vectors hold 8 products of 32 outputs, and a
// row's byte is broadcast against them. That is 3 instructions per 128 products.
#include "core/isa/neon/neon.h"

#if defined(__aarch64__)

#include <arm_neon.h>

namespace stompp {
namespace neon {
namespace {

constexpr int kTileRows = 4;
constexpr int kVectors = static_cast<int>(kPanelOutputs) / 16;

// A byte adds at most 8 to a count: 31 * 8 = 248 fits 8 bits.
constexpr int64_t kChunkBytes = 31;
static_assert(kChunkBytes * 8 <= 255, "counts must not wrap");

// Subtracts twice the counts of 16 outputs from their dot products.
inline void subtract16(uint8x16_t counts, int32_t* dots) {
  const uint16x8_t halves[2] = {vshll_n_u8(vget_low_u8(counts), 1), vshll_high_n_u8(counts, 1)};
  for (int i = 0; i < 2; ++i) {
    const int32x4_t low = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(halves[i])));
    const int32x4_t high = vreinterpretq_s32_u32(vmovl_high_u16(halves[i]));
    vst1q_s32(dots + 8 * i, vsubq_s32(vld1q_s32(dots + 8 * i), low));
    vst1q_s32(dots + 8 * i + 4, vsubq_s32(vld1q_s32(dots + 8 * i + 4), high));
  }
}

template <int kRows>
void multiply_tile(const uint8_t* const* rows, const uint8_t* panel, int64_t k_bytes, int64_t r, int64_t p,
                   const DotsOut& out) {
  int32_t* dots = out.dots + r * out.stride + p * kPanelOutputs;
  for (int i = 0; i < kRows; ++i)
    for (int n = 0; n < kPanelOutputs; ++n) dots[i * out.stride + n] = out.starts[r + i][p * kPanelOutputs + n];
  for (int64_t k = 0; k < k_bytes;) {
    const int64_t end = k_bytes - k < kChunkBytes ? k_bytes : k + kChunkBytes;
    uint8x16_t counts[kRows][kVectors];
    for (int i = 0; i < kRows; ++i)
      for (int v = 0; v < kVectors; ++v) counts[i][v] = vdupq_n_u8(0);
    for (; k < end; ++k, panel += kPanelOutputs) {
      const uint8x16_t w[kVectors] = {vld1q_u8(panel), vld1q_u8(panel + 16)};
      for (int i = 0; i < kRows; ++i) {
        const uint8x16_t a = vld1q_dup_u8(rows[r + i] + k);
        for (int v = 0; v < kVectors; ++v) counts[i][v] = vaddq_u8(counts[i][v], vcntq_u8(veorq_u8(a, w[v])));
      }
    }
    for (int i = 0; i < kRows; ++i)
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

}  // namespace neon
}  // namespace stompp

#endif
