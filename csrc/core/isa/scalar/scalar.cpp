#include "core/isa/scalar/scalar.h"

#include <cstring>

#include "core/binary_weight/signed_sum_bodies.h"
#include "core/isa/elementwise.h"

namespace stompp {
namespace scalar {
namespace {

const char* missing() { return nullptr; }

uint32_t load_word(const uint8_t* bytes) {
  uint32_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

void multiply_block(const ProductBlock& block, const DotsOut& out) {
  for (int64_t r = 0; r < block.rows.row_count; ++r)
    for (int64_t p = 0; p < block.panel_count; ++p) {
      const uint8_t* row = whole_rows(block.scratch)[r];
      const uint8_t* panel = block.panels + p * block.rows.k_bytes * kPanelOutputs;
      int32_t pops[kPanelOutputs] = {};
      for (int64_t k = 0; k < block.rows.k_bytes; k += kWordBytes, panel += kPanelOutputs * kWordBytes) {
        const uint32_t a = load_word(row + k);
        for (int64_t n = 0; n < kPanelOutputs; ++n) pops[n] += popcount32(a ^ load_word(panel + n * kWordBytes));
      }
      const int32_t* starts = out.starts[r] + p * kPanelOutputs;
      int32_t* dots = out.dots + r * out.stride + p * kPanelOutputs;
      for (int64_t n = 0; n < kPanelOutputs; ++n) dots[n] = starts[n] - 2 * pops[n];
    }
}

void pack_row(const void* x, FloatType type, int64_t K, uint32_t* words) {
  if (type == FloatType::kFloat32) return elementwise::pack_row<Float32>(x, K, words);
  if (type == FloatType::kFloat16) return elementwise::pack_row<Float16>(x, K, words);
  elementwise::pack_row<BFloat16>(x, K, words);
}

void less_than(const int32_t* acc, int64_t stride, int64_t rows, const int32_t* thresholds, uint32_t* bits) {
  for (int64_t r = 0; r < rows; ++r, acc += stride) {
    bits[r] = 0;
    for (int i = 0; i < 32; ++i) bits[r] |= static_cast<uint32_t>(acc[i] < thresholds[i]) << i;
  }
}

void pack_outside(const void* x, FloatType type, const Limits& limits, int64_t K, uint32_t* words) {
  elementwise::pack_outside(x, type, limits, K, words);
}

STOMPP_ELEMENTWISE_PRIMITIVES()
STOMPP_SIGNED_SUM_PRIMITIVES()

}  // namespace

const Implementation kImplementation = {
    "scalar",
    "portable C++, 32-bit XNOR + popcount",
    missing,
    {LayoutId::kWords, kWordBytes},
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

}  // namespace scalar
}  // namespace stompp
