// XOR and popcount of 64-bit words. Weights lie as [k / 8][32 outputs][8 bytes]: four vectors hold 64 products of 32
// outputs, and a row's 8 bytes are broadcast against them. That is 3 instructions per 512 products (xor, popcount,
// add); loads and broadcasts are shared by the tile's rows and outputs.
#include "core/isa/avx512/affine_row.h"
#include "core/isa/avx512/avx512.h"

#if defined(__x86_64__)

#include <immintrin.h>

namespace stompp {
namespace avx512 {
namespace {

constexpr int kTileRows = 4;                                   // 4 rows x 4 vectors: 16 of 32 registers count
constexpr int kVectors = static_cast<int>(kPanelOutputs) / 8;  // of a panel
constexpr int64_t kPanelStep = kStepBytes * kPanelOutputs;     // bytes of a panel in one step

// Counts lie in 64-bit lanes. They fit 32 bits, and K does: those of 16 outputs share a vector.
STOMPP_AVX512_INLINE __m512i shifted(__m512i counts, unsigned bits) {
  return _mm512_maskz_slli_epi64(0xff, counts, bits);
}

// The dot products of the outputs kHalf * half and on.
STOMPP_AVX512_INLINE __m512i dots_of(const __m512i (&counts)[kVectors], int half, const int32_t* starts) {
  const __m512i pairs = _mm512_or_si512(counts[2 * half], shifted(counts[2 * half + 1], 32));
  const __m512i lanes = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
  const __m512i pops = _mm512_maskz_permutexvar_epi32(0xffff, lanes, pairs);
  return _mm512_sub_epi32(_mm512_loadu_si512(starts + kHalf * half), _mm512_add_epi32(pops, pops));
}

// Takes the counts of row r of a block, of the outputs 8 * v and on of panel p.
struct DotsSink {
  const DotsOut& out;

  STOMPP_AVX512_INLINE void take(int64_t r, int64_t p, const __m512i (&counts)[kVectors]) const {
    const int32_t* starts = out.starts[r] + p * kPanelOutputs;
    int32_t* dots = out.dots + r * out.stride + p * kPanelOutputs;
#pragma GCC unroll 2
    for (int h = 0; h < kHalves; ++h) _mm512_storeu_si512(dots + kHalf * h, dots_of(counts, h, starts));
  }
};

struct AffineSink {
  const AffineRow row;

  STOMPP_AVX512_INLINE void take(int64_t r, int64_t p, const __m512i (&counts)[kVectors]) const {
    const int32_t* starts = row.out.starts[r] + p * kPanelOutputs;
    row.finish(r, p, dots_of(counts, 0, starts), dots_of(counts, 1, starts));
  }
};

// Counts fit 16 bits: those of all 32 outputs are compared at once.
struct BitsSink {
  const BitsOut& out;

  STOMPP_AVX512_INLINE static __m512i in_order(const __m512i (&counts)[kVectors]) {
    // Outputs j, 8 + j, 16 + j and 24 + j in lane j.
    const __m512i first = _mm512_or_si512(counts[0], shifted(counts[1], 16));
    const __m512i last = _mm512_or_si512(shifted(counts[2], 32), shifted(counts[3], 48));
    const __m512i lanes =
        _mm512_setr_epi64(0x000c000800040000, 0x001c001800140010, 0x000d000900050001, 0x001d001900150011,
                          0x000e000a00060002, 0x001e001a00160012, 0x000f000b00070003, 0x001f001b00170013);
    return _mm512_maskz_permutexvar_epi16(0xffffffff, lanes, _mm512_or_si512(first, last));
  }

  STOMPP_AVX512_INLINE void take(int64_t r, int64_t p, const __m512i (&counts)[kVectors]) const {
    const __m512i all = in_order(counts);
    for (int64_t set = 0; set < out.set_count; ++set) {
      const int16_t* limits = out.limits[r] + (set * kBlockPanels + p) * kPanelOutputs;
      out.bits[(set * kBlockRows + r) * kBlockPanels + p] = _mm512_cmpgt_epi16_mask(all, _mm512_loadu_si512(limits));
    }
  }
};

// Rows that are runs of whole steps are read where they lie, others from their copies.
bool lie_in_steps(const RowBlock& rows) { return rows.run_bytes % kStepBytes == 0; }

struct Runs {
  const uint8_t* const* first;  // [rows][count]
  int64_t count, bytes;

  static Runs of(const ProductBlock& block) {
    const RowBlock& rows = block.rows;
    if (lie_in_steps(rows)) return {rows.runs, rows.run_count, rows.run_bytes};
    return {whole_rows(block.scratch), 1, rows.k_bytes};
  }
};

template <int kRows, class Sink>
STOMPP_AVX512_INLINE void multiply_tile(const Runs& runs, const CountedRuns& counted, const uint8_t* panel, int64_t r,
                                        int64_t p, const Sink& sink) {
  __m512i counts[kRows][kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) counts[i][v] = _mm512_setzero_si512();

  panel += counted.run_begin * runs.bytes * kPanelOutputs;
  for (int64_t run = counted.run_begin; run < counted.run_end; ++run) {
    const uint8_t* rows[kRows];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) rows[i] = runs.first[(r + i) * runs.count + run];
    for (int64_t k = 0; k < runs.bytes; k += kStepBytes, panel += kPanelStep) {
      __m512i w[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) w[v] = _mm512_loadu_si512(panel + 64 * v);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        const __m128i word = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rows[i] + k));
        const __m512i a = _mm512_maskz_broadcastq_epi64(0xff, word);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v)
          counts[i][v] = _mm512_add_epi64(counts[i][v], _mm512_popcnt_epi64(_mm512_xor_si512(a, w[v])));
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) sink.take(r + i, p, counts[i]);
}

template <class Sink>
STOMPP_AVX512 void multiply(const ProductBlock& block, const Sink& sink) {
  const Runs runs = Runs::of(block);
  const CountedRuns all = {block.rows.row_count, 0, runs.count};
  const CountedRuns* first = block.rows.counted == nullptr ? &all : block.rows.counted;
  for (int64_t p = 0; p < block.panel_count; ++p) {
    const uint8_t* panel = block.panels + p * block.rows.k_bytes * kPanelOutputs;
    int64_t r = 0;
    for (const CountedRuns* counted = first; r < block.rows.row_count; ++counted) {
      const int64_t end = r + counted->rows;
      for (; r + kTileRows <= end; r += kTileRows) multiply_tile<kTileRows>(runs, *counted, panel, r, p, sink);
      if (end - r == 3) multiply_tile<3>(runs, *counted, panel, r, p, sink);
      if (end - r == 2) multiply_tile<2>(runs, *counted, panel, r, p, sink);
      if (end - r == 1) multiply_tile<1>(runs, *counted, panel, r, p, sink);
      r = end;
    }
  }
}

}  // namespace

void prepare_rows(const RowBlock& rows, void* scratch) {
  if (!lie_in_steps(rows)) prepare_whole_rows(rows, scratch);
}

void multiply_block(const ProductBlock& block, const DotsOut& out) { multiply(block, DotsSink{out}); }
void compare_block(const ProductBlock& block, const BitsOut& out) { multiply(block, BitsSink{out}); }
void scale_block(const ProductBlock& block, const AffineOut& out) { multiply(block, AffineSink{{out}}); }

}  // namespace avx512
}  // namespace stompp

#endif
