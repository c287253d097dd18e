// A few rows, bound by reading the weights: they are read once, in one stream, and split into nibbles in registers.
// Where many rows share the nibbles, splitting them into memory is faster.
#include "core/isa/avx2/nibble_lookup.h"

#if defined(__x86_64__)

namespace stompp {
namespace avx2 {
namespace {

struct Scratch {
  alignas(64) uint16_t sums[kFewRows / 2][1][2][kPanelOutputs];
  alignas(64) uint16_t offsets[1];  // see expand_pairs
};

struct Nibbles {
  __m256i low, high;
};

STOMPP_AVX2_INLINE Nibbles split(const uint8_t* weights) {
  const __m256i nibble = _mm256_set1_epi8(15), w = load(weights);
  return {_mm256_and_si256(w, nibble), _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble)};
}

STOMPP_AVX2_INLINE __m256i lookup(const uint16_t* offset, __m256i nibbles) {
  return _mm256_shuffle_epi8(table(*offset), nibbles);
}

STOMPP_AVX2_INLINE void add(__m256i sum, __m256i* all, __m256i* shifted) {
  *all = _mm256_add_epi8(*all, sum);
  *shifted = _mm256_add_epi8(*shifted, _mm256_srli_epi16(sum, 4));
}

// A chunk of K of one panel.
template <int kPairs, class Sink>
STOMPP_AVX2_INLINE void multiply_chunk(const uint16_t* offsets, int64_t stride, const uint8_t* panel, int64_t bytes,
                                       ChunkStep step, int64_t p, Scratch* scratch, const Sink& sink) {
  __m256i all[kPairs][1], shifted[kPairs][1];
#pragma GCC unroll 4
  for (int i = 0; i < kPairs; ++i) all[i][0] = shifted[i][0] = _mm256_setzero_si256();
  int64_t k = 0;
  for (; k + 3 <= bytes; k += 3, panel += 3 * kPanelOutputs, offsets += 6) {
    _mm_prefetch(reinterpret_cast<const char*>(panel + kPrefetchBytes), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(panel + kPrefetchBytes + 64), _MM_HINT_T0);
    const Nibbles w0 = split(panel), w1 = split(panel + kPanelOutputs), w2 = split(panel + 2 * kPanelOutputs);
#pragma GCC unroll 4
    for (int i = 0; i < kPairs; ++i) {
      const uint16_t* at = offsets + i * stride;
      const __m256i first = _mm256_add_epi8(lookup(at, w0.low), lookup(at + 1, w0.high));
      const __m256i second = _mm256_add_epi8(lookup(at + 3, w1.high), lookup(at + 4, w2.low));
      add(_mm256_add_epi8(first, lookup(at + 2, w1.low)), &all[i][0], &shifted[i][0]);
      add(_mm256_add_epi8(second, lookup(at + 5, w2.high)), &all[i][0], &shifted[i][0]);
    }
  }
  for (; k < bytes; ++k, panel += kPanelOutputs, offsets += 2) {
    const Nibbles w = split(panel);
#pragma GCC unroll 4
    for (int i = 0; i < kPairs; ++i) {
      const uint16_t* at = offsets + i * stride;
      add(_mm256_add_epi8(lookup(at, w.low), lookup(at + 1, w.high)), &all[i][0], &shifted[i][0]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kPairs; ++i) {
    step.row = 2 * i;
    take_apart_at(all[i], shifted[i], step, scratch->sums[i], p, sink);
  }
}

template <int kPairs, class Sink>
STOMPP_AVX2 void multiply_pairs(const ProductBlock& block, const Sink& sink) {
  Scratch* scratch = static_cast<Scratch*>(block.scratch);
  const int64_t k_bytes = block.rows.k_bytes, stride = offset_stride(k_bytes);
  ChunkStep step = {};
  step.rows = block.rows.row_count;
  for (int64_t p = 0; p < block.panel_count; ++p)
    for (int64_t k = 0; k < k_bytes; k += kChunkBytes) {
      const int64_t bytes = k_bytes - k < kChunkBytes ? k_bytes - k : kChunkBytes;
      step.first = k == 0;
      step.last = k + bytes == k_bytes;
      multiply_chunk<kPairs>(scratch->offsets + 2 * k, stride, block.panels + (p * k_bytes + k) * kPanelOutputs, bytes,
                             step, p, scratch, sink);
    }
}

template <class Sink>
void multiply(const ProductBlock& block, const Sink& sink) {
  static_assert(kFewRows == 8, "the numbers of pairs instantiated below");
  switch ((block.rows.row_count + 1) / 2) {
    case 1:
      return multiply_pairs<1>(block, sink);
    case 2:
      return multiply_pairs<2>(block, sink);
    case 3:
      return multiply_pairs<3>(block, sink);
    default:
      return multiply_pairs<4>(block, sink);
  }
}

}  // namespace

int64_t few_rows_scratch_bytes(int64_t k_bytes) {
  return static_cast<int64_t>(sizeof(Scratch)) + kFewRows / 2 * offset_stride(k_bytes) * 2;
}

STOMPP_AVX2 void prepare_few_rows(const RowBlock& rows, void* scratch) {
  expand_pairs(rows, static_cast<Scratch*>(scratch)->offsets);
}

void multiply_few_rows(const ProductBlock& block, const DotsOut& out) { multiply(block, DotsSink{out}); }
void compare_few_rows(const ProductBlock& block, const BitsOut& out) { multiply(block, BitsSink{out}); }
void scale_few_rows(const ProductBlock& block, const AffineOut& out) { multiply(block, AffineSink{out}); }

}  // namespace avx2
}  // namespace stompp

#endif
