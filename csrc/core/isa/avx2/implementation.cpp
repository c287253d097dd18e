#include "core/isa/avx2/vectors.h"

#if defined(__x86_64__)

#include "core/binary_weight/signed_sum_bodies.h"
#include "core/isa/elementwise.h"

namespace stompp {
namespace avx2 {
namespace {

const char* missing() {
  // These builtins also ask the operating system (XGETBV) whether it saves the vector registers.
  __builtin_cpu_init();
  const bool all = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                   __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
  return all ? nullptr : kNoInstructions;
}

STOMPP_ELEMENTWISE_PRIMITIVES(STOMPP_AVX2)
STOMPP_SIGNED_SUM_PRIMITIVES(STOMPP_AVX2)

}  // namespace

STOMPP_AVX2 void less_than(const int32_t* acc, int64_t stride, int64_t rows, const int32_t* thresholds,
                           uint32_t* bits) {
  __m256i limit[4], less[4];
  for (int i = 0; i < 4; ++i) limit[i] = load(thresholds + 8 * i);
  // Packing works within 128-bit lanes and leaves the fours of comparisons in the order 0 2 4 6 1 3 5 7.
  const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int64_t r = 0; r < rows; ++r, acc += stride) {
    for (int i = 0; i < 4; ++i) less[i] = _mm256_cmpgt_epi32(limit[i], load(acc + 8 * i));
    const __m256i words0 = _mm256_packs_epi32(less[0], less[1]), words1 = _mm256_packs_epi32(less[2], less[3]);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words0, words1), in_order);
    bits[r] = static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
  }
}

const Implementation kImplementation = {
    "avx2",
    "nibble lookup: popcounts for two rows at once from pshufb tables",
    missing,
    {LayoutId::kInterleavedBytes, 1},
    {block_scratch_bytes, prepare_block, multiply_block, compare_block, scale_block},
    {few_rows_scratch_bytes, prepare_few_rows, multiply_few_rows, compare_few_rows, scale_few_rows},
    {one_row_scratch_bytes, prepare_one_row, multiply_one_row, compare_one_row, nullptr},
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

}  // namespace avx2
}  // namespace stompp

#endif
