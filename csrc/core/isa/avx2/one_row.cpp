// One row, bound by reading the weights once: nothing prepared for them would be used again. XNOR + popcount, where a
// tree of carry-save adders (Harley and Seal) adds up the bits of 8 bytes of K, so that only one byte in 8 is counted
// by table lookup: 5.3 instead of 7 vector instructions for 256 products, and the XOR.
#include "core/isa/avx2/vectors.h"

#if defined(__x86_64__)

namespace stompp {
namespace avx2 {
namespace {

constexpr int64_t kGroupBytes = 8;
// A group adds at most 8 to a count of eights: 31 * 8 = 248 fits 8 bits.
constexpr int64_t kSumBytes = 31 * kGroupBytes;
static_assert(kSumBytes <= 255, "counts must not wrap");

STOMPP_AVX2_INLINE __m256i pop(__m256i bytes) {
  const __m256i table = _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,  //
                                         0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
  const __m256i nibble = _mm256_set1_epi8(15);
  const __m256i low = _mm256_shuffle_epi8(table, _mm256_and_si256(bytes, nibble));
  const __m256i high = _mm256_shuffle_epi8(table, _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble));
  return _mm256_add_epi8(low, high);
}

// Adds bits b and c to the bits of `sum`; returns the carries.
STOMPP_AVX2_INLINE __m256i carry_save(__m256i& sum, __m256i b, __m256i c) {
  const __m256i half = _mm256_xor_si256(sum, b);
  const __m256i carry = _mm256_or_si256(_mm256_and_si256(sum, b), _mm256_and_si256(half, c));
  sum = _mm256_xor_si256(half, c);
  return carry;
}

// dots -= 2^kShift * counts for 16 outputs; 2^kShift * counts fits 16 bits.
template <int kShift>
STOMPP_AVX2_INLINE void subtract16(__m256i counts, int32_t* dots) {
  const __m256i scaled = _mm256_slli_epi16(counts, kShift);
  const __m256i low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(scaled));
  const __m256i high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(scaled, 1));
  store(dots, _mm256_sub_epi32(load(dots), low));
  store(dots + 8, _mm256_sub_epi32(load(dots + 8), high));
}

template <int kShift>
STOMPP_AVX2_INLINE void subtract(__m256i counts, int32_t* dots) {
  subtract16<kShift>(_mm256_and_si256(counts, _mm256_set1_epi16(255)), dots);
  subtract16<kShift>(_mm256_srli_epi16(counts, 8), dots + kPanelOutputs / 2);
}

STOMPP_AVX2_INLINE __m256i differ(const uint32_t* row, const uint8_t* panel, int64_t k) {
  return _mm256_xor_si256(_mm256_set1_epi32(static_cast<int>(row[k])), load(panel + k * kPanelOutputs));
}

STOMPP_AVX2_INLINE void prefetch_group(const uint8_t* panel, int64_t k) {
  for (int64_t line = 0; line < kGroupBytes * kPanelOutputs; line += 64)
    _mm_prefetch(reinterpret_cast<const char*>(panel + k * kPanelOutputs + kPrefetchBytes + line), _MM_HINT_T0);
}

// dots = starts - 2 * pop for one panel.
STOMPP_AVX2 void multiply_panel(const uint32_t* row, int64_t k_bytes, const uint8_t* panel, const int32_t* starts,
                                int32_t* dots) {
  const int64_t whole = k_bytes - k_bytes % kGroupBytes;
  __m256i ones = _mm256_setzero_si256(), twos = ones, fours = ones;
  for (int64_t n = 0; n < kPanelOutputs; ++n) dots[n] = starts[n];

  for (int64_t k = 0; k < whole;) {
    const int64_t end = whole - k < kSumBytes ? whole : k + kSumBytes;
    __m256i counts = _mm256_setzero_si256();
    for (; k < end; k += kGroupBytes) {
      prefetch_group(panel, k);
      __m256i four[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        const int64_t at = k + 4 * i;
        const __m256i two0 = carry_save(ones, differ(row, panel, at), differ(row, panel, at + 1));
        const __m256i two1 = carry_save(ones, differ(row, panel, at + 2), differ(row, panel, at + 3));
        four[i] = carry_save(twos, two0, two1);
      }
      counts = _mm256_add_epi8(counts, pop(carry_save(fours, four[0], four[1])));
    }
    subtract<4>(counts, dots);
  }
  // What is left is at most 8 * (1 + 2 + 4) and 7 bytes.
  const __m256i pop4 = pop(fours), pop2 = _mm256_add_epi8(pop(twos), _mm256_add_epi8(pop4, pop4));
  __m256i rest = _mm256_add_epi8(pop(ones), _mm256_add_epi8(pop2, pop2));
  for (int64_t k = whole; k < k_bytes; ++k) rest = _mm256_add_epi8(rest, pop(differ(row, panel, k)));
  subtract<1>(rest, dots);
}

void multiply_row(const ProductBlock& block, const int32_t* starts, int32_t* dots) {
  const uint32_t* row = static_cast<const uint32_t*>(block.scratch);
  const int64_t k_bytes = block.rows.k_bytes;
  for (int64_t p = 0; p < block.panel_count; ++p)
    multiply_panel(row, k_bytes, block.panels + p * k_bytes * kPanelOutputs, starts + p * kPanelOutputs,
                   dots + p * kPanelOutputs);
}

}  // namespace

// The row with every byte four times, so that a load can broadcast it, and the row itself.
int64_t one_row_scratch_bytes(int64_t k_bytes) { return k_bytes * 5; }

STOMPP_AVX2 void prepare_one_row(const RowBlock& rows, void* scratch) {
  uint32_t* row = static_cast<uint32_t*>(scratch);
  uint8_t* bytes = static_cast<uint8_t*>(scratch) + 4 * rows.k_bytes;
  copy_row(rows, 0, bytes);
  for (int64_t k = 0; k < rows.k_bytes; ++k) row[k] = bytes[k] * 0x01010101u;
}

void multiply_one_row(const ProductBlock& block, const DotsOut& out) { multiply_row(block, out.starts[0], out.dots); }

void compare_one_row(const ProductBlock& block, const BitsOut& out) {
  const int32_t zeros[kBlockPanels * kPanelOutputs] = {};
  int32_t dots[kBlockPanels * kPanelOutputs], limits[kPanelOutputs];
  multiply_row(block, zeros, dots);
  for (int64_t set = 0; set < out.set_count; ++set)
    for (int64_t p = 0; p < block.panel_count; ++p) {
      // pop > limit exactly where -2 * pop < -2 * limit
      const int16_t* of_panel = out.limits[0] + (set * kBlockPanels + p) * kPanelOutputs;
      for (int64_t i = 0; i < kPanelOutputs; ++i) limits[i] = -2 * of_panel[i];
      less_than(dots + p * kPanelOutputs, 0, 1, limits, &out.bits[set * kBlockRows * kBlockPanels + p]);
    }
}

}  // namespace avx2
}  // namespace stompp

#endif
