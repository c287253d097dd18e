// Byte lookup for a single row, bound by reading the weights: they are split into nibbles in registers and nothing is
// kept. For one byte of the row, pop(a ^ w) over 32 outputs is two lookups, `T[a_nibble][i] = pop(a_nibble ^ i)`.
#include "core/avx2/vectors.h"

#if defined(__x86_64__)

namespace stompp {
namespace avx2 {
namespace {

// A byte adds at most 8 to a count: 31 * 8 = 248 fits 8 bits.
constexpr int64_t kChunkBytes = 31;
static_assert(kChunkBytes * 8 <= 255, "counts must not wrap");

struct Tables {
  alignas(64) uint8_t bytes[16][16];

  constexpr Tables() : bytes() {
    for (int a = 0; a < 16; ++a)
      for (int i = 0; i < 16; ++i) {
        const int x = a ^ i;
        bytes[a][i] = static_cast<uint8_t>((x & 1) + (x >> 1 & 1) + (x >> 2 & 1) + (x >> 3 & 1));
      }
  }
};
constexpr Tables kTables;

STOMPP_AVX2_INLINE __m256i table(unsigned offset) {
  return _mm256_broadcastsi128_si256(load128(kTables.bytes[0] + offset));
}

// Subtracts twice the counts, which are those of 16 outputs, from dots.
STOMPP_AVX2_INLINE void subtract16(__m256i counts, int32_t* dots) {
  const __m256i twice = _mm256_slli_epi16(counts, 1);
  const __m256i low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(twice));
  const __m256i high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(twice, 1));
  store(dots, _mm256_sub_epi32(load(dots), low));
  store(dots + 8, _mm256_sub_epi32(load(dots + 8), high));
}

template <int kPanels>
STOMPP_AVX2 void multiply_panels(const ProductBlock& block) {
  const int64_t k_bytes = block.rows.k_bytes, pitch = k_bytes * kPanelOutputs;
  const __m256i nibble = _mm256_set1_epi8(15);
  for (int64_t n = 0; n < kPanels * kPanelOutputs; ++n) block.dots[n] = block.K;
  for (int64_t k = 0; k < k_bytes;) {
    const int64_t end = k_bytes - k < kChunkBytes ? k_bytes : k + kChunkBytes;
    __m256i counts[kPanels];
    for (int p = 0; p < kPanels; ++p) counts[p] = _mm256_setzero_si256();
    for (; k < end; ++k) {
      const unsigned a = block.rows.bits[k];
      const __m256i low = table(a << 4 & 0xf0u), high = table(a & 0xf0u);
#pragma GCC unroll 4
      for (int p = 0; p < kPanels; ++p) {
        const __m256i w = load(block.panels + p * pitch + k * kPanelOutputs);
        const __m256i w_high = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
        counts[p] = _mm256_add_epi8(counts[p], _mm256_shuffle_epi8(low, _mm256_and_si256(w, nibble)));
        counts[p] = _mm256_add_epi8(counts[p], _mm256_shuffle_epi8(high, w_high));
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      int32_t* dots = block.dots + p * kPanelOutputs;
      subtract16(_mm256_and_si256(counts[p], _mm256_set1_epi16(255)), dots);
      subtract16(_mm256_srli_epi16(counts[p], 8), dots + kPanelOutputs / 2);
    }
  }
}

}  // namespace

void multiply_one_row(const ProductBlock& block) {
  static_assert(kBlockPanels == 4, "the numbers of panels instantiated below");
  switch (block.panel_count) {
    case 1:
      return multiply_panels<1>(block);
    case 2:
      return multiply_panels<2>(block);
    case 3:
      return multiply_panels<3>(block);
    default:
      return multiply_panels<4>(block);
  }
}

}  // namespace avx2
}  // namespace stompp

#endif
