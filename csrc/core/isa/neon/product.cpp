#include "core/isa/neon/lanes.h"

#if defined(__aarch64__)

#define STOMPP_TARGET

namespace stompp {
namespace neon {
namespace {

#include "core/product/affine_body.h"

void less_than(const int32_t* acc, int64_t stride, int64_t rows, const int32_t* thresholds, uint32_t* bits) {
  for (int64_t r = 0; r < rows; ++r, acc += stride) {
    bits[r] = 0;
    for (int i = 0; i < 32; i += 4) bits[r] |= lane_bits(vcltq_s32(vld1q_s32(acc + i), vld1q_s32(thresholds + i))) << i;
  }
}

constexpr ProductKernels product_kernels() {
  ProductKernels kernels = {};
  kernels.layout = {LayoutId::kBytes, 1};
  kernels.blocks.scratch_bytes = whole_rows_bytes;
  kernels.blocks.prepare_rows = prepare_whole_rows;
  kernels.blocks.multiply = multiply_block;
  kernels.less_than = less_than;
  kernels.affine = affine;
  return kernels;
}

}  // namespace

constexpr ProductKernels kProductKernels = product_kernels();

}  // namespace neon
}  // namespace stompp

#endif
