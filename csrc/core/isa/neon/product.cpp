#include "core/isa/neon/lanes.h"

#if defined(__aarch64__)

#define STOMPP_TARGET

namespace stompp {
namespace neon {
namespace {

struct Bytes {
  using Vector = uint8x16_t;

  static Vector zero() { return vdupq_n_u8(0); }
  static Vector load(const uint8_t* from) { return vld1q_u8(from); }
  static Vector repeat(const uint8_t* from) { return vld1q_dup_u8(from); }
  static Vector add_differing(Vector counts, Vector a, Vector b) { return vaddq_u8(counts, vcntq_u8(veorq_u8(a, b))); }

  static void subtract_twice(Vector counts, int32_t* dots) {
    const uint16x8_t halves[2] = {vshll_n_u8(vget_low_u8(counts), 1), vshll_high_n_u8(counts, 1)};
    for (int i = 0; i < 2; ++i) {
      const int32x4_t low = vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(halves[i])));
      const int32x4_t high = vreinterpretq_s32_u32(vmovl_high_u16(halves[i]));
      vst1q_s32(dots + 8 * i, vsubq_s32(vld1q_s32(dots + 8 * i), low));
      vst1q_s32(dots + 8 * i + 4, vsubq_s32(vld1q_s32(dots + 8 * i + 4), high));
    }
  }
};

#include "core/product/affine_body.h"
#include "core/product/byte_counts_body.h"

void less_than(const int32_t* acc, int64_t stride, int64_t rows, const int32_t* thresholds, uint32_t* bits) {
  for (int64_t r = 0; r < rows; ++r, acc += stride) {
    bits[r] = 0;
    for (int i = 0; i < 32; i += 4) bits[r] |= lane_bits(vcltq_s32(vld1q_s32(acc + i), vld1q_s32(thresholds + i))) << i;
  }
}

constexpr ProductKernels product_kernels() {
  ProductKernels kernels = byte_count_kernels();
  kernels.less_than = less_than;
  kernels.affine = affine;
  return kernels;
}

}  // namespace

constexpr ProductKernels kProductKernels = product_kernels();

}  // namespace neon
}  // namespace stompp

#endif
