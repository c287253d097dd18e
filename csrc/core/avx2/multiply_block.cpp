// Nibble lookup for two rows at once. For the nibbles a0 and a1 of a pair of rows, one pshufb of the table
//   T[a0][a1][i] = pop(a0 ^ i) + 16 * pop(a1 ^ i)
// by 32 weight nibbles i counts 256 products: the first row's in the low half of each byte, the second row's in the
// high half. Three lookups add up to M = m0 + 16 * m1 with m0, m1 <= 12, where the halves still do not touch. Then
//   all += M,  shifted += M >> 4
// where the sums are of bytes and the shift is of 16-bit words, so that an even byte of M >> 4 also has 16 * m0 of the
// odd byte after it. From both sums, the counts are taken apart at the end of a chunk of K, see `take_apart`. That is 8
// vector instructions for 768 products. The 256 tables take 4 KB; weights are split into nibbles, and rows turned into
// offsets of tables, once for a block.
#include <cstring>

#include "core/avx2/vectors.h"

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

// The scratch memory of a block. Only the offsets are as long as K.
struct Scratch {
  // [panel][32 outputs] of each nibble of a chunk
  alignas(64) uint8_t nibbles[kChunkNibbles][kBlockPanels][kPanelOutputs];
  // 16-bit counts of the chunks so far, for the two rows of a pair
  alignas(64) uint16_t sums[kBlockRows / 2][kBlockPanels][2][kPanelOutputs];
  // where K is longer than 16-bit sums can be: the dot products of one section of it
  alignas(64) int32_t dots[kBlockRows * kBlockPanels * kPanelOutputs];
  // [pair of rows][2 * k_bytes, zeros up to the stride]: of each nibble of K, where its table begins
  alignas(64) uint16_t offsets[1];
};

// In 16-bit units: room for whole steps of 16 bytes of K and a triple's zeros, and an odd number of cache lines, so
// that the pairs of rows do not compete for the same lines of L1.
constexpr int64_t offset_stride(int64_t k_bytes) { return round_up(2 * round_up(k_bytes, 16) + 6, 64) + 32; }

// Offsets for 16 bytes of two rows, the low nibble of a byte before the high one.
STOMPP_AVX2_INLINE void expand16(__m128i row0, __m128i row1, uint16_t* offsets) {
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i scale = _mm256_set1_epi16(2 << 8 | 32);  // byte 0: 16 * 16 / kOffsetUnit, byte 1: 16 / kOffsetUnit
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

STOMPP_AVX2 void expand(const uint8_t* row0, const uint8_t* row1, int64_t k_bytes, uint16_t* offsets) {
  if (k_bytes < 16) {
    alignas(16) uint8_t padded[2][16] = {};
    std::memcpy(padded[0], row0, static_cast<size_t>(k_bytes));
    std::memcpy(padded[1], row1, static_cast<size_t>(k_bytes));
    return expand16(load128(padded[0]), load128(padded[1]), offsets);
  }
  for (int64_t k = 0; k + 16 <= k_bytes; k += 16) expand16(load128(row0 + k), load128(row1 + k), offsets + 2 * k);
  const int64_t last = k_bytes - 16;
  expand16(load128(row0 + last), load128(row1 + last), offsets + 2 * last);
  store128(offsets + 2 * k_bytes, _mm_setzero_si128());
}

// Splits `bytes` bytes of K of the panels into nibbles, and adds zeros up to a whole triple: with a table of a zero
// nibble they count nothing.
template <int kPanels>
STOMPP_AVX2_INLINE void split(const uint8_t* panels, int64_t pitch, int64_t bytes, uint8_t* nibbles) {
  const __m256i nibble = _mm256_set1_epi8(15);
  constexpr int kStep = kPanels * kPanelOutputs;
  for (int64_t k = 0; k < bytes; ++k, nibbles += 2 * kStep)
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
      const __m256i w = load(panels + p * pitch + k * kPanelOutputs);
      store(nibbles + p * kPanelOutputs, _mm256_and_si256(w, nibble));
      store(nibbles + kStep + p * kPanelOutputs, _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble));
    }
  for (int64_t k = 2 * bytes; k % 3 != 0; ++k, nibbles += kStep)
    for (int p = 0; p < kPanels; ++p) store(nibbles + p * kPanelOutputs, _mm256_setzero_si256());
}

STOMPP_AVX2_INLINE __m256i table(uint16_t offset) {
  return _mm256_broadcastsi128_si256(load128(kTables.bytes[0] + offset * size_t{kOffsetUnit}));
}

template <int kPanels>
STOMPP_AVX2_INLINE void add_triple(const uint16_t* offsets, const uint8_t* nibbles, __m256i (&all)[kPanels],
                                   __m256i (&shifted)[kPanels]) {
  constexpr int kStep = kPanels * kPanelOutputs;
  const __m256i table0 = table(offsets[0]), table1 = table(offsets[1]), table2 = table(offsets[2]);
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p, nibbles += kPanelOutputs) {
    __m256i sum = _mm256_shuffle_epi8(table0, load(nibbles));
    sum = _mm256_add_epi8(sum, _mm256_shuffle_epi8(table1, load(nibbles + kStep)));
    sum = _mm256_add_epi8(sum, _mm256_shuffle_epi8(table2, load(nibbles + 2 * kStep)));
    all[p] = _mm256_add_epi8(all[p], sum);
    shifted[p] = _mm256_add_epi8(shifted[p], _mm256_srli_epi16(sum, 4));
    // Else gcc merges the sums of neighbouring triples, runs out of registers and keeps the counts on the stack.
    __asm__ volatile("" : "+x"(all[p]), "+x"(shifted[p]));
  }
}

// What becomes of the counts of a chunk.
struct ChunkStep {
  bool first, last;  // of those that are added up in 16 bits
  bool two_rows;     // the second row of the pair exists
  int32_t K;
  int64_t stride;  // of the dot products
};

// Adds the counts of 16 outputs to `sums`, or to them and on to the dot products, K - 2 * counts.
template <bool kFirst, bool kLast>
STOMPP_AVX2_INLINE void add_counts(__m256i counts, const ChunkStep& step, uint16_t* sums, int32_t* dots) {
  if (!kFirst) counts = _mm256_add_epi16(counts, load(sums));
  if (!kLast) return store(sums, counts);
  const __m256i K = _mm256_set1_epi32(step.K);
  const __m256i low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(counts));
  const __m256i high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(counts, 1));
  store(dots, _mm256_sub_epi32(K, _mm256_add_epi32(low, low)));
  store(dots + 8, _mm256_sub_epi32(K, _mm256_add_epi32(high, high)));
}

// With even and odd bytes e and o of a 16-bit word, and counts n0 and n1 of the rows,
//   all:     e = n0[e] + 16 * n1[e]    o = n0[o] + 16 * n1[o]    (mod 256)
//   shifted: e = n1[e] + 16 * n0[o]    o = n1[o]                 (mod 256)
// and every count is below 256, so they follow one from the other, beginning with n1[o].
template <int kPanels, bool kFirst, bool kLast>
STOMPP_AVX2_INLINE void take_apart(const __m256i (&all)[kPanels], const __m256i (&shifted)[kPanels],
                                   const ChunkStep& step, uint16_t (*sums)[2][kPanelOutputs], int32_t* dots) {
  constexpr int64_t kHalf = kPanelOutputs / 2;
  const __m256i byte = _mm256_set1_epi16(255);
#pragma GCC unroll 4
  for (int p = 0; p < kPanels; ++p, dots += kPanelOutputs) {
    const __m256i odd1 = _mm256_srli_epi16(shifted[p], 8);
    const __m256i rest = _mm256_sub_epi16(all[p], _mm256_slli_epi16(odd1, 12));
    const __m256i odd0 = _mm256_srli_epi16(rest, 8);
    const __m256i even1 = _mm256_and_si256(_mm256_sub_epi16(shifted[p], _mm256_slli_epi16(odd0, 4)), byte);
    const __m256i even0 = _mm256_and_si256(_mm256_sub_epi16(rest, _mm256_slli_epi16(even1, 4)), byte);
    add_counts<kFirst, kLast>(even0, step, sums[p][0], dots);
    add_counts<kFirst, kLast>(odd0, step, sums[p][0] + kHalf, dots + kHalf);
    if (kLast && !step.two_rows) continue;
    add_counts<kFirst, kLast>(even1, step, sums[p][1], dots + step.stride);
    add_counts<kFirst, kLast>(odd1, step, sums[p][1] + kHalf, dots + step.stride + kHalf);
  }
}

// A chunk of K for one pair of rows.
template <int kPanels>
STOMPP_AVX2_INLINE void multiply_chunk(const uint16_t* offsets, const uint8_t* nibbles, int64_t triples,
                                       const ChunkStep& step, uint16_t (*sums)[2][kPanelOutputs], int32_t* dots) {
  __m256i all[kPanels], shifted[kPanels];
  for (int p = 0; p < kPanels; ++p) all[p] = shifted[p] = _mm256_setzero_si256();
  constexpr int64_t kTriple = 3 * kPanels * kPanelOutputs;
  for (; triples >= 4; triples -= 4, offsets += 12, nibbles += 4 * kTriple)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) add_triple<kPanels>(offsets + 3 * i, nibbles + i * kTriple, all, shifted);
  for (; triples > 0; --triples, offsets += 3, nibbles += kTriple) add_triple<kPanels>(offsets, nibbles, all, shifted);
  if (step.first)
    step.last ? take_apart<kPanels, true, true>(all, shifted, step, sums, dots)
              : take_apart<kPanels, true, false>(all, shifted, step, sums, dots);
  else
    step.last ? take_apart<kPanels, false, true>(all, shifted, step, sums, dots)
              : take_apart<kPanels, false, false>(all, shifted, step, sums, dots);
}

// Bytes [k_begin, k_begin + k_bytes) of K, at most kSumBytes; dots = K - 2 * counts.
template <int kPanels>
STOMPP_AVX2 void multiply_section(const ProductBlock& block, int64_t k_begin, int64_t k_bytes, int32_t K, int32_t* dots,
                                  int64_t dot_stride) {
  Scratch* scratch = static_cast<Scratch*>(block.scratch);
  const int64_t rows = block.rows.row_count, stride = offset_stride(block.rows.k_bytes);
  ChunkStep step = {};
  step.K = K;
  step.stride = dot_stride;
  for (int64_t at = 0; at < k_bytes; at += kChunkBytes) {
    const int64_t k = k_begin + at, bytes = k_bytes - at < kChunkBytes ? k_bytes - at : kChunkBytes;
    const int64_t triples = ceil_div(2 * bytes, 3);
    split<kPanels>(block.panels + k * kPanelOutputs, block.rows.k_bytes * kPanelOutputs, bytes, scratch->nibbles[0][0]);
    step.first = at == 0;
    step.last = at + bytes == k_bytes;
    for (int64_t pair = 0; 2 * pair < rows; ++pair) {
      step.two_rows = 2 * pair + 1 < rows;
      multiply_chunk<kPanels>(scratch->offsets + pair * stride + 2 * k, scratch->nibbles[0][0], triples, step,
                              scratch->sums[pair], dots + 2 * pair * dot_stride);
    }
  }
}

template <int kPanels>
STOMPP_AVX2 void multiply_panels(const ProductBlock& block) {
  constexpr int64_t kOutputs = kPanels * kPanelOutputs;
  const int64_t k_bytes = block.rows.k_bytes;
  multiply_section<kPanels>(block, 0, k_bytes < kSumBytes ? k_bytes : kSumBytes, block.K, block.dots, block.dot_stride);
  for (int64_t k = kSumBytes; k < k_bytes; k += kSumBytes) {
    int32_t* more = static_cast<Scratch*>(block.scratch)->dots;
    multiply_section<kPanels>(block, k, k_bytes - k < kSumBytes ? k_bytes - k : kSumBytes, 0, more, kOutputs);
    for (int64_t r = 0; r < block.rows.row_count; ++r)
      for (int64_t n = 0; n < kOutputs; ++n) block.dots[r * block.dot_stride + n] += more[r * kOutputs + n];
  }
}

}  // namespace

int64_t scratch_bytes(int64_t k_bytes) {
  return static_cast<int64_t>(sizeof(Scratch)) + kBlockRows / 2 * offset_stride(k_bytes) * 2;
}

void prepare_rows(const RowBlock& rows, void* scratch) {
  if (rows.row_count == 1) return;
  uint16_t* offsets = static_cast<Scratch*>(scratch)->offsets;
  const int64_t stride = offset_stride(rows.k_bytes);
  for (int64_t r = 0; r < rows.row_count; r += 2, offsets += stride) {
    const uint8_t* row = rows.bits + r * rows.row_stride;
    // A last odd row is paired with itself; the second count is not read.
    expand(row, r + 1 < rows.row_count ? row + rows.row_stride : row, rows.k_bytes, offsets);
  }
}

void multiply_block(const ProductBlock& block) {
  static_assert(kBlockPanels == 4, "the numbers of panels instantiated below");
  if (block.rows.row_count == 1) return multiply_one_row(block);
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
