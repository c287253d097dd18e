// XOR and popcount of 64-bit words. Weights lie as [k / 8][32 outputs][8 bytes]: four vectors hold 64 products of 32
// outputs, and a row's 8 bytes are broadcast against them. That is 3 instructions per 512 products (xor, popcount,
// add); loads and broadcasts are shared by the tile's rows and outputs.
#include "core/avx512/avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

namespace stompp {
namespace avx512 {
namespace {

constexpr int kTileRows = 4;                                   // 4 rows x 4 vectors: 16 of 32 registers count
constexpr int kVectors = static_cast<int>(kPanelOutputs) / 8;  // of a panel
constexpr int64_t kStepBytes = 8;                              // of K
constexpr int64_t kPanelStep = kStepBytes * kPanelOutputs;     // bytes of a panel in one step

// K - 2 * counts of eight outputs. The counts fit 32 bits: K does.
STOMPP_AVX512_INLINE void store_dots(__m512i counts, __m256i K, int32_t* dots) {
  const __m256i pops = _mm512_maskz_cvtepi64_epi32(0xff, counts);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(dots), _mm256_sub_epi32(K, _mm256_add_epi32(pops, pops)));
}

template <int kRows>
STOMPP_AVX512 void multiply_tile(const uint8_t* rows, int64_t row_stride, const uint8_t* panel, int64_t k_bytes,
                                 int32_t K, int32_t* dots, int64_t dot_stride) {
  __m512i counts[kRows][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) counts[r][v] = _mm512_setzero_si512();

  for (int64_t k = 0; k < k_bytes; k += kStepBytes, panel += kPanelStep) {
    __m512i w[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) w[v] = _mm512_loadu_si512(panel + 64 * v);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const __m128i word = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows + r * row_stride + k));
      const __m512i a = _mm512_maskz_broadcastq_epi64(0xff, word);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        counts[r][v] = _mm512_add_epi64(counts[r][v], _mm512_popcnt_epi64(_mm512_xor_si512(a, w[v])));
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store_dots(counts[r][v], _mm256_set1_epi32(K), dots + r * dot_stride + 8 * v);
}

}  // namespace

void multiply_block(const ProductBlock& block) {
  const RowBlock& rows = block.rows;
  for (int64_t p = 0; p < block.panel_count; ++p) {
    const uint8_t* panel = block.panels + p * rows.k_bytes * kPanelOutputs;
    for (int64_t r = 0; r < rows.row_count; r += kTileRows) {
      const uint8_t* first = rows.bits + r * rows.row_stride;
      int32_t* dots = block.dots + r * block.dot_stride + p * kPanelOutputs;
      switch (rows.row_count - r) {
        case 1:
          multiply_tile<1>(first, rows.row_stride, panel, rows.k_bytes, block.K, dots, block.dot_stride);
          break;
        case 2:
          multiply_tile<2>(first, rows.row_stride, panel, rows.k_bytes, block.K, dots, block.dot_stride);
          break;
        case 3:
          multiply_tile<3>(first, rows.row_stride, panel, rows.k_bytes, block.K, dots, block.dot_stride);
          break;
        default:
          multiply_tile<kTileRows>(first, rows.row_stride, panel, rows.k_bytes, block.K, dots, block.dot_stride);
      }
    }
  }
}

}  // namespace avx512
}  // namespace stompp

#endif
