// Signed sums by lookup: 8 sums of 3 inputs in a register, selected by 3 bits of 8 weights.
//
// The tables of a word of 32 inputs lie in the order of its bits: a vector of words, one of each output, is shifted on
// by 3 bits from table to table, and the permutation reads no more than the lowest 3. The last table of a word is of
// its last two inputs. Tables of 4 inputs, half of whose sums are the others' negatives, would take a sign to be
// shifted, masked and applied.
#include "core/isa/avx2/lanes.h"
#include "core/isa/avx2/vectors.h"

#if defined(__x86_64__)

#define STOMPP_TARGET STOMPP_AVX2

namespace stompp {
namespace avx2 {
namespace {

#include "core/binary_weight/channel_sum_body.h"
#include "core/binary_weight/signed_sum_body.h"

constexpr int64_t kSumRows = 4;
constexpr int64_t kBits = 3;
constexpr int64_t kTable = 8;
constexpr int64_t kTables = 11;
constexpr int64_t kWordFloats = kTables * kTable;

// Lane i is -1 where bit `bit` of i is set, else +1.
STOMPP_AVX2_INLINE __m256 signs_of_bit(int bit) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i sign = _mm256_slli_epi32(_mm256_srl_epi32(lane, _mm_cvtsi32_si128(bit)), 31);
  return _mm256_xor_ps(_mm256_set1_ps(1.0f), _mm256_castsi256_ps(sign));
}

// kVectors vectors of a panel's outputs, of some rows: kRows * kVectors sums in registers.
template <int kRows, int kVectors>
struct Tile {
  const SignedSumBlock& block;
  const uint32_t* panel;  // from the tile's first output on
  __m256 sums[kRows][kVectors];

  STOMPP_AVX2_INLINE void add_word(const uint32_t* words, const float* const* rows, int64_t tables) {
    __m256i bits[kVectors];
    for (int v = 0; v < kVectors; ++v) bits[v] = load(words + v * 8);
    // Unrolled, gcc computes all permutations before the additions and spills them.
#pragma GCC unroll 1
    for (int64_t t = 0; t < tables; ++t) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m256 table = _mm256_loadu_ps(rows[r] + t * kTable);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          sums[r][v] = _mm256_add_ps(sums[r][v], _mm256_permutevar8x32_ps(table, bits[v]));
      }
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) bits[v] = _mm256_srli_epi32(bits[v], kBits);
    }
  }

  STOMPP_AVX2_INLINE void run(int64_t first_row, float* out) {
    const int64_t words = words_for(block.inputs), whole = block.inputs / kWordBits;
    const int64_t tail = ceil_div(block.inputs % kWordBits, kBits);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm256_setzero_ps();
    for (int64_t tap = 0; tap < block.tap_count; ++tap) {
      const float* rows[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) rows[r] = block.rows[tap * block.row_count + first_row + r];
      const uint32_t* from = panel + block.taps[tap] * words * kPanelOutputs;
      for (int64_t i = 0; i < whole; ++i, from += kPanelOutputs) {
        add_word(from, rows, kTables);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) rows[r] += kWordFloats;
      }
      if (tail > 0) add_word(from, rows, tail);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) _mm256_storeu_ps(out + r * block.stride + v * 8, sums[r][v]);
  }
};

template <int kRows>
STOMPP_AVX2 void add_up_rows(const SignedSumBlock& block) {
  constexpr int kVectors = kRows <= 2 ? 4 : 2;  // what 16 registers hold
  const int64_t panel_words = block.panel_taps * words_for(block.inputs) * kPanelOutputs;
  for (int64_t panel = 0; panel < block.panel_count; ++panel)
    for (int64_t n = 0; n < kPanelOutputs; n += 8 * kVectors) {
      Tile<kRows, kVectors> tile = {block, block.panels + panel * panel_words + n, {}};
      tile.run(0, block.sums + panel * kPanelOutputs + n);
    }
}

STOMPP_AVX2 void prepare_sums(const float* x, int64_t inputs, float* prepared) {
  const __m256 signs[kBits] = {signs_of_bit(0), signs_of_bit(1), signs_of_bit(2)};
  for (int64_t first = 0; first < inputs; first += kWordBits)
    for (int64_t k = first; k < first + kWordBits; k += kBits, prepared += kTable) {
      // The last inputs of a row, and the last of a word, are fewer than three.
      const int64_t end = inputs < first + kWordBits ? inputs : first + kWordBits;
      float three[kBits] = {};
      for (int64_t i = 0; i < kBits && k + i < end; ++i) three[i] = x[k + i];
      const float* from = k + kBits <= end ? x + k : three;
      __m256 table = _mm256_mul_ps(signs[0], _mm256_set1_ps(from[0]));
      // Products with +-1 are exact: nothing but the additions rounds.
      for (int i = 1; i < kBits; ++i) table = _mm256_fmadd_ps(signs[i], _mm256_set1_ps(from[i]), table);
      _mm256_storeu_ps(prepared, table);
    }
}

STOMPP_AVX2 void add_up(const SignedSumBlock& block) {
  switch (block.row_count) {
    case 1:
      return add_up_rows<1>(block);
    case 2:
      return add_up_rows<2>(block);
    case 3:
      return add_up_rows<3>(block);
    default:
      return add_up_rows<4>(block);
  }
}

constexpr SignedSumKernels faster_signed_sum_kernels() {
  SignedSumKernels kernels = signed_sum_kernels();
  kernels.sums.rows = kSumRows;
  kernels.sums.word_floats = kWordFloats;
  kernels.sums.prepare = prepare_sums;
  kernels.sums.add_up = add_up;
  kernels.channels = channel_sum_kernel<Lanes>();
  return kernels;
}

}  // namespace

constexpr SignedSumKernels kSignedSumKernels = faster_signed_sum_kernels();

}  // namespace avx2
}  // namespace stompp

#endif
