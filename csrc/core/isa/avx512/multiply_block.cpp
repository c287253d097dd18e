// XOR and popcount of 64-bit words. Weights lie as [k / 8][32 outputs][8 bytes]: four vectors hold 64 products of 32
// outputs, and a row's 8 bytes are broadcast against them. That is 3 instructions per 512 products (xor, popcount,
// add); loads and broadcasts are shared by the tile's rows and outputs.
#include "core/isa/avx512/avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

namespace stompp {
namespace avx512 {
namespace {

constexpr int kTileRows = 4;                                   // 4 rows x 4 vectors: 16 of 32 registers count
constexpr int kVectors = static_cast<int>(kPanelOutputs) / 8;  // of a panel
constexpr int64_t kStepBytes = 8;                              // of K
constexpr int64_t kPanelStep = kStepBytes * kPanelOutputs;     // bytes of a panel in one step

// Eight dot products.
STOMPP_AVX512_INLINE __m256i dots_of(__m512i counts, const int32_t* starts) {
  const __m256i pops = _mm512_maskz_cvtepi64_epi32(0xff, counts);  // counts fit 32 bits: K does
  const __m256i start = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(starts));
  return _mm256_sub_epi32(start, _mm256_add_epi32(pops, pops));
}

// Takes the counts of row r of a block, of the outputs 8 * v and on of panel p.
struct DotsSink {
  const DotsOut& out;

  STOMPP_AVX512_INLINE void take(int64_t r, int64_t p, const __m512i (&counts)[kVectors]) const {
    const int32_t* starts = out.starts[r] + p * kPanelOutputs;
    int32_t* dots = out.dots + r * out.stride + p * kPanelOutputs;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(dots + 8 * v), dots_of(counts[v], starts + 8 * v));
  }
};

struct AffineSink {
  const AffineOut& out;

  STOMPP_AVX512_INLINE __m256 multiply_add(__m256 x, const float* scale, const float* bias) const {
    const __m256 s = _mm256_loadu_ps(scale), b = _mm256_loadu_ps(bias);
    return out.fused ? _mm256_fmadd_ps(x, s, b) : _mm256_add_ps(_mm256_mul_ps(x, s), b);
  }
  // The outputs from n on behind the RPReLU.
  STOMPP_AVX512_INLINE __m256 rprelu(__m256 y, int64_t n) const {
    const __m256 t = _mm256_add_ps(y, _mm256_loadu_ps(out.rprelu.before + n));
    const __m256 negative = _mm256_mul_ps(t, _mm256_loadu_ps(out.rprelu.slope + n));
    const __m256 bent = _mm256_mask_blend_ps(_mm256_cmp_ps_mask(t, _mm256_setzero_ps(), _CMP_GT_OQ), negative, t);
    return _mm256_add_ps(bent, _mm256_loadu_ps(out.rprelu.after + n));
  }
  // Bit i: output n + i has the sign -1.
  STOMPP_AVX512_INLINE uint32_t signs(__m256 y, int64_t n) const {
    if (out.limits.low == nullptr) return _mm256_cmp_ps_mask(y, _mm256_setzero_ps(), _CMP_LT_OQ);
    const uint32_t below = _mm256_cmp_ps_mask(y, _mm256_loadu_ps(out.limits.low + n), _CMP_LT_OQ);
    return below | _mm256_cmp_ps_mask(y, _mm256_loadu_ps(out.limits.high + n), _CMP_GT_OQ);
  }
  STOMPP_AVX512_INLINE void take(int64_t r, int64_t p, const __m512i (&counts)[kVectors]) const {
    const int64_t first = p * kPanelOutputs, at = r * out.stride + first;
    __m256 y[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      y[v] = multiply_add(_mm256_cvtepi32_ps(dots_of(counts[v], out.starts[r] + first + 8 * v)),
                          out.scale + first + 8 * v, out.bias + first + 8 * v);
    if (out.residual != nullptr) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const int64_t n = first + 8 * v;
        __m256 x = _mm256_loadu_ps(out.residual + at + 8 * v);
        if (out.residual_scale != nullptr) x = multiply_add(x, out.residual_scale + n, out.residual_bias + n);
        y[v] = _mm256_add_ps(y[v], x);
      }
    }
    if (out.rprelu.before != nullptr) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) y[v] = rprelu(y[v], first + 8 * v);
    }
    if (out.words != nullptr) {
      uint32_t below = 0;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) below |= signs(y[v], first + 8 * v) << (8 * v);
      out.words[r * out.word_stride + p] = below;
    }
    if (out.out == nullptr) return;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) _mm256_storeu_ps(out.out + at + 8 * v, y[v]);
  }
};

struct BitsSink {
  const BitsOut& out;

  STOMPP_AVX512_INLINE void take(int64_t r, int64_t p, const __m512i (&counts)[kVectors]) const {
    for (int64_t set = 0; set < out.set_count; ++set) {
      const int16_t* limits = out.limits[r] + (set * kBlockPanels + p) * kPanelOutputs;
      uint32_t bits = 0;
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const __m128i limit = _mm_loadu_si128(reinterpret_cast<const __m128i*>(limits + 8 * v));
        const uint32_t above = _mm512_cmpgt_epi64_mask(counts[v], _mm512_maskz_cvtepi16_epi64(0xff, limit));
        bits |= above << (8 * v);
      }
      out.bits[(set * kBlockRows + r) * kBlockPanels + p] = bits;
    }
  }
};

template <int kRows, class Sink>
STOMPP_AVX512_INLINE void multiply_tile(const uint8_t* const* rows, const uint8_t* panel, int64_t k_bytes, int64_t r,
                                        int64_t p, const Sink& sink) {
  __m512i counts[kRows][kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) counts[i][v] = _mm512_setzero_si512();

  for (int64_t k = 0; k < k_bytes; k += kStepBytes, panel += kPanelStep) {
    __m512i w[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) w[v] = _mm512_loadu_si512(panel + 64 * v);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const __m128i word = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[r + i] + k));
      const __m512i a = _mm512_maskz_broadcastq_epi64(0xff, word);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        counts[i][v] = _mm512_add_epi64(counts[i][v], _mm512_popcnt_epi64(_mm512_xor_si512(a, w[v])));
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) sink.take(r + i, p, counts[i]);
}

template <class Sink>
STOMPP_AVX512 void multiply(const ProductBlock& block, const Sink& sink) {
  const uint8_t* const* rows = whole_rows(block.scratch);
  const int64_t count = block.rows.row_count, k_bytes = block.rows.k_bytes;
  for (int64_t p = 0; p < block.panel_count; ++p) {
    const uint8_t* panel = block.panels + p * k_bytes * kPanelOutputs;
    int64_t r = 0;
    for (; r + kTileRows <= count; r += kTileRows) multiply_tile<kTileRows>(rows, panel, k_bytes, r, p, sink);
    if (count - r == 3) multiply_tile<3>(rows, panel, k_bytes, r, p, sink);
    if (count - r == 2) multiply_tile<2>(rows, panel, k_bytes, r, p, sink);
    if (count - r == 1) multiply_tile<1>(rows, panel, k_bytes, r, p, sink);
  }
}

}  // namespace

void multiply_block(const ProductBlock& block, const DotsOut& out) { multiply(block, DotsSink{out}); }
void compare_block(const ProductBlock& block, const BitsOut& out) { multiply(block, BitsSink{out}); }
void scale_block(const ProductBlock& block, const AffineOut& out) { multiply(block, AffineSink{out}); }

}  // namespace avx512
}  // namespace stompp

#endif
