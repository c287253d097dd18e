#include "core/isa/avx512/avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "core/binary_weight/signed_sum_bodies.h"
#include "core/isa/elementwise.h"

namespace stompp {
namespace avx512 {
namespace {

const char* missing() {
  // These builtins also ask the operating system (XGETBV) whether it saves the vector registers.
  __builtin_cpu_init();
  const bool all = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                   __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                   __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("bmi") &&
                   __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("popcnt");
  return all ? nullptr : kNoInstructions;
}

STOMPP_AVX512 void less_than(const int32_t* acc, int64_t stride, int64_t rows, const int32_t* thresholds,
                             uint32_t* bits) {
  const __m512i low = _mm512_loadu_si512(thresholds), high = _mm512_loadu_si512(thresholds + 16);
  for (int64_t r = 0; r < rows; ++r, acc += stride) {
    const uint32_t first = _mm512_cmplt_epi32_mask(_mm512_loadu_si512(acc), low);
    const uint32_t second = _mm512_cmplt_epi32_mask(_mm512_loadu_si512(acc + 16), high);
    bits[r] = first | second << 16;
  }
}

STOMPP_ELEMENTWISE_PRIMITIVES(STOMPP_AVX512)
STOMPP_SIGNED_SUM_PRIMITIVES(STOMPP_AVX512)

}  // namespace

const Implementation kImplementation = {
    "avx512",
    "64-bit XOR and popcount of 8 outputs at a time",
    missing,
    {LayoutId::kLongs, 8},
    {whole_rows_bytes, prepare_whole_rows, multiply_block, compare_block, scale_block},
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
    {{kSumRows, kSumWordFloats, prepare_sums, add_up},
     {kMaxSumRows, kWordBits, prepare_channels, add_up_channels},
     widen,
     scale_sums},
    {kTilePixels, multiply_tile, compare_tile},
    {transform_lines, compare_rows},
};

}  // namespace avx512
}  // namespace stompp

#endif
