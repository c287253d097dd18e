#include "core/isa/neon/neon.h"

#if defined(__aarch64__)

#include <arm_neon.h>

#include "core/binary_weight/signed_sum_bodies.h"
#include "core/isa/elementwise.h"

namespace stompp {
namespace neon {
namespace {

const char* missing() { return nullptr; }
constexpr uint32_t kLaneBits[4] = {1, 2, 4, 8};

// Bits of four comparisons.
inline uint32_t lane_bits(uint32x4_t comparison) { return vaddvq_u32(vandq_u32(comparison, vld1q_u32(kLaneBits))); }

void less_than(const int32_t* acc, int64_t stride, int64_t rows, const int32_t* thresholds, uint32_t* bits) {
  for (int64_t r = 0; r < rows; ++r, acc += stride) {
    bits[r] = 0;
    for (int i = 0; i < 32; i += 4) bits[r] |= lane_bits(vcltq_s32(vld1q_s32(acc + i), vld1q_s32(thresholds + i))) << i;
  }
}

// Signs of 32 consecutive fp32. The comparison is false for NaN and for -0.0.
inline uint32_t sign_word_fp32(const float* x) {
  uint32_t word = 0;
  for (int i = 0; i < 32; i += 4) word |= lane_bits(vcltzq_f32(vld1q_f32(x + i))) << i;
  return word;
}

void pack_row(const void* x, FloatType type, int64_t K, uint32_t* words) {
  if (type == FloatType::kFloat16) return elementwise::pack_row<Float16>(x, K, words);
  if (type == FloatType::kBFloat16) return elementwise::pack_row<BFloat16>(x, K, words);
  const int64_t whole = K / kWordBits, tail = K % kWordBits;
  const float* values = static_cast<const float*>(x);
  for (int64_t i = 0; i < whole; ++i) words[i] = sign_word_fp32(values + i * kWordBits);
  if (tail != 0) words[whole] = elementwise::sign_word<Float32>(x, whole * kWordBits, tail);
}

void pack_outside(const void* x, FloatType type, const Limits& limits, int64_t K, uint32_t* words) {
  elementwise::pack_outside(x, type, limits, K, words);
}

STOMPP_ELEMENTWISE_PRIMITIVES()
STOMPP_SIGNED_SUM_PRIMITIVES()

}  // namespace

const Implementation kImplementation = {
    "neon",
    "byte XOR and popcount of 16 outputs at a time",
    missing,
    {LayoutId::kBytes, 1},
    {whole_rows_bytes, prepare_whole_rows, multiply_block, nullptr, nullptr},
    {},
    {},
    {},
    count_taps,
    compare_planes,
    planes_to_dots,
    pack_row,
    pack_outside,
    pack_planes,
    unpack_row,
    less_than,
    affine,
    progressive_forward,
    progressive_backward,
    gate_backward,
    refresh_words,
    {{kMaxSumRows, kWordBits, prepare_floats, add_up_floats},
     {kMaxSumRows, kWordBits, prepare_channels, add_up_channels},
     widen,
     scale_sums},
    {kTilePixels, multiply_tile, compare_tile},
    {transform_lines, compare_rows},
};

}  // namespace neon
}  // namespace stompp

#endif
