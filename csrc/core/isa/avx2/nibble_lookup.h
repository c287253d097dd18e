// Nibble lookup for two rows at once. For the nibbles a0 and a1 of a pair of rows, one pshufb of the table
//   T[a0][a1][i] = pop(a0 ^ i) + 16 * pop(a1 ^ i)
// by 32 weight nibbles i counts 256 products: the first row's in the low half of each byte, the second row's in the
// high half. Three lookups add up to M = m0 + 16 * m1 with m0, m1 <= 12, where the halves still do not touch. Then
//   all += M,  shifted += M >> 4
// where the sums are of bytes and the shift is of 16-bit words, so that an even byte of M >> 4 also has 16 * m0 of the
// odd byte after it. From both sums, the counts are taken apart at the end of a chunk of K, see `take_apart`. That is 8
// vector instructions for 768 products. The 256 tables take 4 KB; rows are turned into offsets of tables once.
#pragma once

#include <cstring>

#include "core/isa/avx2/vectors.h"

#if defined(__x86_64__)

namespace stompp {
namespace avx2 {
namespace {

// A nibble adds at most 4 to a count: 60 * 4 = 240 fits 8 bits, 273 * 240 = 65520 fits 16 bits.
constexpr int64_t kChunkBytes = 30;
constexpr int64_t kChunkNibbles = 2 * kChunkBytes;
constexpr int64_t kSumBytes = 273 * kChunkBytes;
static_assert(kChunkNibbles % 6 == 0, "chunks are whole triples of nibbles and whole bytes");
static_assert(kChunkNibbles * 4 <= 255 && kSumBytes * 8 <= 65535, "counts must not wrap");
static_assert(3 * 4 <= 15, "three lookups stay within half a byte");

struct Tables {
  alignas(64) uint8_t bytes[256][16];

  constexpr Tables() : bytes() {
    for (int a = 0; a < 256; ++a)
      for (int i = 0; i < 16; ++i) bytes[a][i] = static_cast<uint8_t>(pop(a >> 4 ^ i) + 16 * pop((a & 15) ^ i));
  }
  static constexpr int pop(int nibble) {
    return (nibble & 1) + (nibble >> 1 & 1) + (nibble >> 2 & 1) + (nibble >> 3 & 1);
  }
};
constexpr Tables kTables;
constexpr int kOffsetUnit = 8;  // offsets of tables count 8 bytes: they come from a multiplication by signed bytes

STOMPP_AVX2_INLINE __m256i table(uint16_t offset) {
  return _mm256_broadcastsi128_si256(load128(kTables.bytes[0] + offset * size_t{kOffsetUnit}));
}

// Offsets of a pair of rows, in 16-bit units: room for whole steps of 16 bytes of K and a triple's zeros, and an odd
// number of cache lines, so that the pairs do not compete for the same lines of L1.
constexpr int64_t offset_stride(int64_t k_bytes) { return round_up(2 * round_up(k_bytes, 16) + 32, 64) + 32; }

// Computes offsets for bytes of two rows, the low nibble of a byte before the high one.
constexpr int16_t kOffsetScale = 2 << 8 | 32;  // byte 0: 16 * 16 / kOffsetUnit, byte 1: 16 / kOffsetUnit

STOMPP_AVX2_INLINE void expand8(__m128i row0, __m128i row1, uint16_t* offsets) {
  const __m128i nibble = _mm_set1_epi8(15), scale = _mm_set1_epi16(kOffsetScale);
  const __m128i both = _mm_unpacklo_epi8(row0, row1);
  const __m128i low = _mm_maddubs_epi16(_mm_and_si128(both, nibble), scale);
  const __m128i high = _mm_maddubs_epi16(_mm_and_si128(_mm_srli_epi16(both, 4), nibble), scale);
  store128(offsets, _mm_unpacklo_epi16(low, high));
  store128(offsets + 8, _mm_unpackhi_epi16(low, high));
}

STOMPP_AVX2_INLINE void expand16(__m128i row0, __m128i row1, uint16_t* offsets) {
  const __m256i nibble = _mm256_set1_epi8(15), scale = _mm256_set1_epi16(kOffsetScale);
  const __m256i both =
      _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi8(row0, row1)), _mm_unpackhi_epi8(row0, row1), 1);
  const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(both, nibble), scale);
  const __m256i high = _mm256_maddubs_epi16(_mm256_and_si256(_mm256_srli_epi16(both, 4), nibble), scale);
  const __m256i even = _mm256_unpacklo_epi16(low, high), odd = _mm256_unpackhi_epi16(low, high);
  store128(offsets, _mm256_castsi256_si128(even));
  store128(offsets + 8, _mm256_castsi256_si128(odd));
  store128(offsets + 16, _mm256_extracti128_si256(even, 1));
  store128(offsets + 24, _mm256_extracti128_si256(odd, 1));
}

// Loads the first `count` of 16 bytes, zeros after them; reads no byte past them.
STOMPP_AVX2_INLINE __m128i load_part(const uint8_t* p, int64_t count) {
  uint64_t low = 0, high = 0;
  if (count >= 8) {
    std::memcpy(&low, p, 8);
    if (count == 8) return _mm_cvtsi64_si128(static_cast<int64_t>(low));
    std::memcpy(&high, p + count - 8, 8);
    high >>= 8 * (16 - count);
    return _mm_set_epi64x(static_cast<int64_t>(high), static_cast<int64_t>(low));
  }
  if (count >= 4) {
    uint32_t first, last;
    std::memcpy(&first, p, 4);
    std::memcpy(&last, p + count - 4, 4);
    low = first | static_cast<uint64_t>(last) << (8 * (count - 4));
    return _mm_cvtsi64_si128(static_cast<int64_t>(low));
  }
  for (int64_t i = 0; i < count; ++i) low |= static_cast<uint64_t>(p[i]) << (8 * i);
  return _mm_cvtsi64_si128(static_cast<int64_t>(low));
}

// Computes offsets for a run of two rows, and zeros up to a whole 8 bytes.
STOMPP_AVX2_INLINE void expand(const uint8_t* row0, const uint8_t* row1, int64_t bytes, uint16_t* offsets) {
  int64_t k = 0;
  for (; k + 16 <= bytes; k += 16) expand16(load128(row0 + k), load128(row1 + k), offsets + 2 * k);
  const int64_t left = bytes - k;
  if (left == 0) return;
  const __m128i part0 = load_part(row0 + k, left), part1 = load_part(row1 + k, left);
  left <= 8 ? expand8(part0, part1, offsets + 2 * k) : expand16(part0, part1, offsets + 2 * k);
}

// [pair of rows][2 * k_bytes, zeros up to the stride]: of each nibble of K, where its table begins.
STOMPP_AVX2_INLINE void expand_pairs(const RowBlock& rows, uint16_t* offsets) {
  const int64_t stride = offset_stride(rows.k_bytes);
  for (int64_t r = 0; r < rows.row_count; r += 2, offsets += stride) {
    const uint8_t* const* runs0 = rows.runs + r * rows.run_count;
    // A last odd row is paired with itself; the second count is not read.
    const uint8_t* const* runs1 = r + 1 < rows.row_count ? runs0 + rows.run_count : runs0;
    for (int64_t i = 0; i < rows.run_count; ++i)
      expand(runs0[i], runs1[i], rows.run_bytes, offsets + 2 * i * rows.run_bytes);
    store128(offsets + 2 * rows.k_bytes, _mm_setzero_si128());
  }
}

// Eight dot products.
STOMPP_AVX2_INLINE __m256i dots_of(__m128i counts, const int32_t* starts) {
  const __m256i wide = _mm256_cvtepu16_epi32(counts);
  return _mm256_sub_epi32(load(starts), _mm256_add_epi32(wide, wide));
}

// Takes the counts of row r of a block and the outputs of its panel p, 16 and 16.
struct DotsSink {
  const DotsOut& out;

  STOMPP_AVX2_INLINE void take(int64_t r, int64_t p, const __m256i (&counts)[2]) const {
    const int32_t* starts = out.starts[r] + p * kPanelOutputs;
    int32_t* dots = out.dots + r * out.stride + p * kPanelOutputs;
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half, starts += 16, dots += 16) {
      store(dots, dots_of(_mm256_castsi256_si128(counts[half]), starts));
      store(dots + 8, dots_of(_mm256_extracti128_si256(counts[half], 1), starts + 8));
    }
  }
};

struct AffineSink {
  const AffineOut& out;

  STOMPP_AVX2_INLINE __m256 multiply_add(__m256 x, const float* scale, const float* bias) const {
    const __m256 s = _mm256_loadu_ps(scale), b = _mm256_loadu_ps(bias);
    return out.fused ? _mm256_fmadd_ps(x, s, b) : _mm256_add_ps(_mm256_mul_ps(x, s), b);
  }
  // The outputs from n on behind the RPReLU.
  STOMPP_AVX2_INLINE __m256 rprelu(__m256 y, int64_t n) const {
    const __m256 t = _mm256_add_ps(y, _mm256_loadu_ps(out.rprelu.before + n));
    const __m256 negative = _mm256_mul_ps(t, _mm256_loadu_ps(out.rprelu.slope + n));
    const __m256 bent = _mm256_blendv_ps(negative, t, _mm256_cmp_ps(t, _mm256_setzero_ps(), _CMP_GT_OQ));
    return _mm256_add_ps(bent, _mm256_loadu_ps(out.rprelu.after + n));
  }
  // Bit i: output n + i has the sign -1.
  STOMPP_AVX2_INLINE uint32_t signs(__m256 y, int64_t n) const {
    if (out.limits.low == nullptr)
      return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(y, _mm256_setzero_ps(), _CMP_LT_OQ)));
    const __m256 below = _mm256_cmp_ps(y, _mm256_loadu_ps(out.limits.low + n), _CMP_LT_OQ);
    const __m256 above = _mm256_cmp_ps(y, _mm256_loadu_ps(out.limits.high + n), _CMP_GT_OQ);
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_or_ps(below, above)));
  }
  STOMPP_AVX2_INLINE void take(int64_t r, int64_t p, const __m256i (&counts)[2]) const {
    const int64_t first = p * kPanelOutputs, at = r * out.stride + first;
    __m256 y[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int64_t n = first + 8 * i;
      const __m256i half = counts[i / 2];
      const __m128i quarter = i % 2 == 0 ? _mm256_castsi256_si128(half) : _mm256_extracti128_si256(half, 1);
      y[i] = multiply_add(_mm256_cvtepi32_ps(dots_of(quarter, out.starts[r] + n)), out.scale + n, out.bias + n);
    }
    if (out.residual != nullptr) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const int64_t n = first + 8 * i;
        __m256 x = _mm256_loadu_ps(out.residual + at + 8 * i);
        if (out.residual_scale != nullptr) x = multiply_add(x, out.residual_scale + n, out.residual_bias + n);
        y[i] = _mm256_add_ps(y[i], x);
      }
    }
    if (out.rprelu.before != nullptr) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) y[i] = rprelu(y[i], first + 8 * i);
    }
    if (out.words != nullptr) {
      uint32_t below = 0;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) below |= signs(y[i], first + 8 * i) << (8 * i);
      out.words[r * out.word_stride + p] = below;
    }
    if (out.out == nullptr) return;
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) _mm256_storeu_ps(out.out + at + 8 * i, y[i]);
  }
};

struct BitsSink {
  const BitsOut& out;

  STOMPP_AVX2_INLINE void take(int64_t r, int64_t p, const __m256i (&counts)[2]) const {
    for (int64_t set = 0; set < out.set_count; ++set) {
      const int16_t* limits = out.limits[r] + (set * kBlockPanels + p) * kPanelOutputs;
      const __m256i above0 = _mm256_cmpgt_epi16(counts[0], load(limits));
      const __m256i above1 = _mm256_cmpgt_epi16(counts[1], load(limits + 16));
      // packs works within 128-bit lanes; the permutation puts the four quarters back in order.
      const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packs_epi16(above0, above1), 0xd8);
      out.bits[(set * kBlockRows + r) * kBlockPanels + p] = static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
    }
  }
};

// What becomes of the counts of a chunk.
struct ChunkStep {
  bool first, last;   // of those that are added up in 16 bits
  int64_t row, rows;  // the first one of the pair, and how many the block has
};

// With even and odd bytes e and o of a 16-bit word, and counts n0 and n1 of the rows,
//   all:     e = n0[e] + 16 * n1[e]    o = n0[o] + 16 * n1[o]    (mod 256)
//   shifted: e = n1[e] + 16 * n0[o]    o = n1[o]                 (mod 256)
// and every count is below 256, so they follow one from the other, beginning with n1[o].
template <int kPanels, bool kFirst, bool kLast, class Sink>
STOMPP_AVX2_INLINE void take_apart(const __m256i (&all)[kPanels], const __m256i (&shifted)[kPanels],
                                   const ChunkStep& step, uint16_t (*sums)[2][kPanelOutputs], int64_t panel,
                                   const Sink& sink) {
  const __m256i byte = _mm256_set1_epi16(255);
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p) {
    const __m256i odd1 = _mm256_srli_epi16(shifted[p], 8);
    const __m256i rest = _mm256_sub_epi16(all[p], _mm256_slli_epi16(odd1, 12));
    const __m256i odd0 = _mm256_srli_epi16(rest, 8);
    const __m256i even1 = _mm256_and_si256(_mm256_sub_epi16(shifted[p], _mm256_slli_epi16(odd0, 4)), byte);
    const __m256i even0 = _mm256_and_si256(_mm256_sub_epi16(rest, _mm256_slli_epi16(even1, 4)), byte);
    __m256i counts[2][2] = {{even0, odd0}, {even1, odd1}};
#pragma GCC unroll 2
    for (int row = 0; row < 2; ++row) {
      uint16_t* sum = sums[p][row];
      if (!kFirst) {
        counts[row][0] = _mm256_add_epi16(counts[row][0], load(sum));
        counts[row][1] = _mm256_add_epi16(counts[row][1], load(sum + 16));
      }
      if (!kLast) {
        store(sum, counts[row][0]);
        store(sum + 16, counts[row][1]);
      } else if (row == 0 || step.row + 1 < step.rows) {
        sink.take(step.row + row, panel + p, counts[row]);
      }
    }
  }
}

// The same for panels from `panel` on, as the step says.
template <int kPanels, class Sink>
STOMPP_AVX2_INLINE void take_apart_at(const __m256i (&all)[kPanels], const __m256i (&shifted)[kPanels],
                                      const ChunkStep& step, uint16_t (*sums)[2][kPanelOutputs], int64_t panel,
                                      const Sink& sink) {
  if (step.first)
    step.last ? take_apart<kPanels, true, true>(all, shifted, step, sums, panel, sink)
              : take_apart<kPanels, true, false>(all, shifted, step, sums, panel, sink);
  else
    step.last ? take_apart<kPanels, false, true>(all, shifted, step, sums, panel, sink)
              : take_apart<kPanels, false, false>(all, shifted, step, sums, panel, sink);
}

}  // namespace
}  // namespace avx2
}  // namespace stompp

#endif
