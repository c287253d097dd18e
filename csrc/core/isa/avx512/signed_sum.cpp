// Signed sums by lookup: 16 sums of 4 inputs in a register, selected by 4 bits of 16 weights.
//
// The tables of a word of 32 inputs lie in the order of its bits: a vector of words, one of each output, is shifted on
// by 4 bits from table to table, and the permutation reads no more than the lowest 4.
#include "core/isa/avx512/lanes.h"

#if defined(__x86_64__)

#define STOMPP_TARGET STOMPP_AVX512

// gcc's own headers leave the lanes that a full mask does not keep uninitialized.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

namespace stompp {
namespace avx512 {
namespace {

#include "core/binary_weight/channel_sum_body.h"
#include "core/binary_weight/signed_sum_body.h"

constexpr int64_t kSumRows = 6;
constexpr int64_t kBits = 4;
constexpr int64_t kTable = 16;
constexpr int64_t kTables = kWordBits / kBits;
constexpr int64_t kWordFloats = kTables * kTable;
constexpr int kPanelVectors = kPanelOutputs / 16;

// Lane i is -1 where bit `bit` of i is set, else +1.
STOMPP_AVX512_INLINE __m512 signs_of_bit(int bit) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __mmask16 set = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(1 << bit));
  return _mm512_mask_blend_ps(set, _mm512_set1_ps(1.0f), _mm512_set1_ps(-1.0f));
}

// Vectors of outputs of some rows: kRows * kPanels * 2 sums in registers.
template <int kRows, int kPanels>
struct Tile {
  static constexpr int kVectors = kPanels * kPanelVectors;

  const SignedSumBlock& block;
  const uint32_t* panels;  // the tile's
  int64_t panel_words;
  __m512 sums[kRows][kVectors];

  STOMPP_AVX512_INLINE void add_word(const uint32_t* words, const float* const* rows, int64_t tables) {
    __m512i bits[kVectors];
    for (int v = 0; v < kVectors; ++v)
      bits[v] = _mm512_loadu_si512(words + v / kPanelVectors * panel_words + v % kPanelVectors * 16);
    // Unrolled, gcc computes all permutations before the additions and spills them.
#pragma GCC unroll 1
    for (int64_t t = 0; t < tables; ++t) {
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512 table = _mm512_load_ps(rows[r] + t * kTable);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v)
          sums[r][v] = _mm512_add_ps(sums[r][v], _mm512_permutexvar_ps(bits[v], table));
      }
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) bits[v] = _mm512_srli_epi32(bits[v], kBits);
    }
  }

  STOMPP_AVX512_INLINE void run(int64_t first_row, float* out) {
    const int64_t words = words_for(block.inputs), whole = block.inputs / kWordBits;
    const int64_t tail = ceil_div(block.inputs % kWordBits, kBits);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_setzero_ps();
    for (int64_t tap = 0; tap < block.tap_count; ++tap) {
      const float* rows[kRows];
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) rows[r] = block.rows[tap * block.row_count + first_row + r];
      const uint32_t* from = panels + block.taps[tap] * words * kPanelOutputs;
      for (int64_t i = 0; i < whole; ++i, from += kPanelOutputs) {
        add_word(from, rows, kTables);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) rows[r] += kWordFloats;
      }
      if (tail > 0) add_word(from, rows, tail);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) _mm512_storeu_ps(out + r * block.stride + v * 16, sums[r][v]);
  }
};

// Runs panels from *done on while there are kPanels of them.
template <int kRows, int kPanels>
STOMPP_AVX512_INLINE void run_panels(const SignedSumBlock& block, int64_t* done) {
  const int64_t panel_words = block.panel_taps * words_for(block.inputs) * kPanelOutputs;
  for (; *done + kPanels <= block.panel_count; *done += kPanels) {
    Tile<kRows, kPanels> tile = {block, block.panels + *done * panel_words, panel_words, {}};
    tile.run(0, block.sums + *done * kPanelOutputs);
  }
}

template <int kRows>
STOMPP_AVX512 void add_up_rows(const SignedSumBlock& block) {
  int64_t done = 0;
  // Enough sums at once to hide how long an addition takes, as far as the 32 registers go.
  if (kRows <= 2) run_panels<kRows, 4>(block, &done);
  run_panels<kRows, 2>(block, &done);
  run_panels<kRows, 1>(block, &done);
}

STOMPP_AVX512 void prepare_sums(const float* x, int64_t inputs, float* prepared) {
  const __m512 signs[kBits] = {signs_of_bit(0), signs_of_bit(1), signs_of_bit(2), signs_of_bit(3)};
  for (int64_t k = 0; k < inputs; k += kBits, prepared += kTable) {
    float four[kBits] = {};
    const int64_t count = inputs - k < kBits ? inputs - k : kBits;
    if (count < kBits) std::memcpy(four, x + k, static_cast<size_t>(count) * sizeof(float));
    const float* from = count < kBits ? four : x + k;
    __m512 table = _mm512_mul_ps(signs[0], _mm512_set1_ps(from[0]));
    // Products with +-1 are exact: nothing but the additions rounds.
    for (int i = 1; i < kBits; ++i) table = _mm512_fmadd_ps(signs[i], _mm512_set1_ps(from[i]), table);
    _mm512_store_ps(prepared, table);
  }
}

STOMPP_AVX512 void add_up(const SignedSumBlock& block) {
  switch (block.row_count) {
    case 1:
      return add_up_rows<1>(block);
    case 2:
      return add_up_rows<2>(block);
    case 3:
      return add_up_rows<3>(block);
    case 4:
      return add_up_rows<4>(block);
    case 5:
      return add_up_rows<5>(block);
    default:
      return add_up_rows<6>(block);
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

}  // namespace avx512
}  // namespace stompp

#endif
