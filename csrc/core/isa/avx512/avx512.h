// x86-64 with AVX-512 and its 64-bit popcount (Intel Ice Lake and Sapphire Rapids, AMD Zen 4 and later).
#pragma once

#if defined(__x86_64__)

#include "core/isa/implementation.h"

// Functions carry the target themselves: the files are compiled for the baseline, so nothing leaks into code that an
// older processor runs.
#define STOMPP_AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vpopcntdq,avx2,fma,bmi,bmi2,popcnt")))
#define STOMPP_AVX512_INLINE STOMPP_AVX512 __attribute__((always_inline)) inline

namespace stompp {
namespace avx512 {

extern const Implementation kImplementation;

void multiply_block(const ProductBlock& block, const DotsOut& out);
void compare_block(const ProductBlock& block, const BitsOut& out);
void scale_block(const ProductBlock& block, const AffineOut& out);
void pack_row(const void* x, FloatType type, int64_t K, uint32_t* words);
void pack_outside(const void* x, FloatType type, const Limits& limits, int64_t K, uint32_t* words);

constexpr int64_t kSumRows = 6;
constexpr int64_t kSumWordFloats = 128;
void prepare_sums(const float* x, int64_t inputs, int64_t turns, float* prepared);
void add_up(const SignedSumBlock& block);

constexpr int kTilePixels = 12;
void multiply_tile(const FloatTile& tile, const FloatTileOut& out);
void compare_tile(const FloatTile& tile, const FloatTileBits& out);
void transform_lines(const float* const* lines, int64_t floats, float* out, int64_t out_stride,
                     winograd::Largest& largest);
void compare_rows(const winograd::Tile& tile, winograd::Bits& bits);

}  // namespace avx512
}  // namespace stompp

#endif
