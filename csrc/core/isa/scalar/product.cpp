#include "core/isa/scalar/scalar.h"

#define STOMPP_TARGET

namespace stompp {
namespace scalar {
namespace {

#include "core/product/affine_body.h"

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

void less_than(const int32_t* acc, int64_t stride, int64_t rows, const int32_t* thresholds, uint32_t* bits) {
  for (int64_t r = 0; r < rows; ++r, acc += stride) {
    bits[r] = 0;
    for (int i = 0; i < 32; ++i) bits[r] |= static_cast<uint32_t>(acc[i] < thresholds[i]) << i;
  }
}

constexpr ProductKernels product_kernels() {
  ProductKernels kernels = {};
  kernels.layout = {LayoutId::kWords, kWordBytes};
  kernels.blocks.scratch_bytes = whole_rows_bytes;
  kernels.blocks.prepare_rows = prepare_whole_rows;
  kernels.blocks.multiply = multiply_block;
  kernels.less_than = less_than;
  kernels.affine = affine;
  return kernels;
}

}  // namespace

constexpr ProductKernels kProductKernels = product_kernels();

}  // namespace scalar
}  // namespace stompp
