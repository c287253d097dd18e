#include "core/isa/neon/lanes.h"

#if defined(__aarch64__)

#define STOMPP_TARGET

namespace stompp {
namespace neon {
namespace {

#include "core/signs/pack_body.h"

// Returns the signs of 32 consecutive fp32. The comparison is false for NaN and for -0.0.
inline uint32_t sign_word_fp32(const float* x) {
  uint32_t word = 0;
  for (int i = 0; i < 32; i += 4) word |= lane_bits(vcltzq_f32(vld1q_f32(x + i))) << i;
  return word;
}

void pack_row(const void* x, FloatType type, int64_t K, uint32_t* words) {
  if (type != FloatType::kFloat32) return pack_any_row(x, type, K, words);
  const int64_t whole = K / kWordBits, tail = K % kWordBits;
  const float* values = static_cast<const float*>(x);
  for (int64_t i = 0; i < whole; ++i) words[i] = sign_word_fp32(values + i * kWordBits);
  if (tail != 0) words[whole] = sign_word<Float32>(x, whole * kWordBits, tail);
}

constexpr PackKernels faster_pack_kernels() {
  PackKernels kernels = pack_kernels();
  kernels.pack_row = pack_row;
  return kernels;
}

}  // namespace

constexpr PackKernels kPackKernels = faster_pack_kernels();

}  // namespace neon
}  // namespace stompp

#endif
