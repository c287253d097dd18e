#include "core/avx2/vectors.h"

#if defined(__x86_64__)

#include "core/elementwise.h"

namespace stompp {
namespace avx2 {
namespace {

bool supported() {
  // These builtins also ask the operating system (XGETBV) whether it saves the vector registers.
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
}

// Bit i of a word as byte i: -1 where it is set.
STOMPP_AVX2_INLINE __m256i expand_bits(uint32_t word) {
  const __m256i byte_of =
      _mm256_setr_epi64x(0x0000000000000000, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
  const __m256i bit_of = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201u));
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(word)), byte_of);
  return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit_of), bit_of);
}

STOMPP_AVX2 void sum_bits(const uint32_t* words, int64_t count, int32_t* sums) {
  const __m256i start = _mm256_set1_epi32(static_cast<int>(count));
  for (int n = 0; n < 32; n += 8) store(sums + n, start);
  while (count > 0) {
    const int64_t chunk = count < 255 ? count : 255;  // what a byte can count
    __m256i ones = _mm256_setzero_si256();
    for (int64_t w = 0; w < chunk; ++w) ones = _mm256_sub_epi8(ones, expand_bits(words[w]));
    alignas(32) uint8_t bytes[32];
    store(bytes, ones);
    for (int n = 0; n < 32; n += 8) {
      const __m256i wide = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes + n)));
      store(sums + n, _mm256_sub_epi32(load(sums + n), _mm256_add_epi32(wide, wide)));
    }
    words += chunk;
    count -= chunk;
  }
}

STOMPP_ELEMENTWISE_PRIMITIVES(STOMPP_AVX2)

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
    supported,
    {LayoutId::kInterleavedBytes, 1},
    scratch_bytes,
    prepare_rows,
    multiply_block,
    compare_block,
    sum_bits,
    pack_row,
    pack_planes,
    unpack_row,
    less_than,
    affine,
    progressive_forward,
    progressive_backward,
    refresh_words,
};

}  // namespace avx2
}  // namespace stompp

#endif
