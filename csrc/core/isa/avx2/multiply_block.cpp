// Blocks of many rows: the weights of a chunk of K are split into nibbles once, in L1, for all pairs of rows.
#include "core/isa/avx2/nibble_lookup.h"

#if defined(__x86_64__)

namespace stompp {
namespace avx2 {
namespace {

// The scratch memory of a block. Only the offsets are as long as K.
struct Scratch {
  // [panel][32 outputs] of each nibble of a chunk
  alignas(64) uint8_t nibbles[kChunkNibbles][kBlockPanels][kPanelOutputs];
  // 16-bit counts of the chunks so far, for the two rows of a pair
  alignas(64) uint16_t sums[kBlockRows / 2][kBlockPanels][2][kPanelOutputs];
  // where K is longer than 16-bit sums can be: the dot products of one section of it
  alignas(64) int32_t dots[kBlockRows * kBlockPanels * kPanelOutputs];
  // see expand_pairs
  alignas(64) uint16_t offsets[1];
};

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
    // Otherwise gcc merges the sums of neighbouring triples, runs out of registers and keeps the counts on the stack.
    __asm__ volatile("" : "+x"(all[p]), "+x"(shifted[p]));
  }
}

// A chunk of K for one pair of rows.
template <int kPanels, class Sink>
STOMPP_AVX2_INLINE void multiply_chunk(const uint16_t* offsets, const uint8_t* nibbles, int64_t triples,
                                       const ChunkStep& step, uint16_t (*sums)[2][kPanelOutputs], const Sink& sink) {
  __m256i all[kPanels], shifted[kPanels];
  for (int p = 0; p < kPanels; ++p) all[p] = shifted[p] = _mm256_setzero_si256();
  constexpr int64_t kTriple = 3 * kPanels * kPanelOutputs;
  for (; triples >= 4; triples -= 4, offsets += 12, nibbles += 4 * kTriple)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) add_triple<kPanels>(offsets + 3 * i, nibbles + i * kTriple, all, shifted);
  for (; triples > 0; --triples, offsets += 3, nibbles += kTriple) add_triple<kPanels>(offsets, nibbles, all, shifted);
  take_apart_at(all, shifted, step, sums, 0, sink);
}

// Multiplies bytes [k_begin, k_begin + k_bytes) of K, at most kSumBytes.
template <int kPanels, class Sink>
STOMPP_AVX2 void multiply_section(const ProductBlock& block, int64_t k_begin, int64_t k_bytes, const Sink& sink) {
  Scratch* scratch = static_cast<Scratch*>(block.scratch);
  const int64_t rows = block.rows.row_count, stride = offset_stride(block.rows.k_bytes);
  ChunkStep step = {};
  step.rows = rows;
  for (int64_t at = 0; at < k_bytes; at += kChunkBytes) {
    const int64_t k = k_begin + at, bytes = k_bytes - at < kChunkBytes ? k_bytes - at : kChunkBytes;
    const int64_t triples = ceil_div(2 * bytes, 3);
    split<kPanels>(block.panels + k * kPanelOutputs, block.rows.k_bytes * kPanelOutputs, bytes, scratch->nibbles[0][0]);
    step.first = at == 0;
    step.last = at + bytes == k_bytes;
    for (step.row = 0; step.row < rows; step.row += 2)
      multiply_chunk<kPanels>(scratch->offsets + step.row / 2 * stride + 2 * k, scratch->nibbles[0][0], triples, step,
                              scratch->sums[step.row / 2], sink);
  }
}

template <int kPanels>
STOMPP_AVX2 void multiply_panels(const ProductBlock& block, const DotsOut& out) {
  constexpr int64_t kOutputs = kPanels * kPanelOutputs;
  static const int32_t kZeros[kBlockPanels * kPanelOutputs] = {};
  const int64_t k_bytes = block.rows.k_bytes;
  multiply_section<kPanels>(block, 0, k_bytes < kSumBytes ? k_bytes : kSumBytes, DotsSink{out});
  if (k_bytes <= kSumBytes) return;

  const int32_t* starts[kBlockRows];
  for (const int32_t*& start : starts) start = kZeros;
  const DotsOut more = {starts, static_cast<Scratch*>(block.scratch)->dots, kOutputs};
  for (int64_t k = kSumBytes; k < k_bytes; k += kSumBytes) {
    multiply_section<kPanels>(block, k, k_bytes - k < kSumBytes ? k_bytes - k : kSumBytes, DotsSink{more});
    for (int64_t r = 0; r < block.rows.row_count; ++r)
      for (int64_t n = 0; n < kOutputs; ++n) out.dots[r * out.stride + n] += more.dots[r * kOutputs + n];
  }
}

static_assert(kMaxLimitK <= 8 * kSumBytes, "one section below");

template <int kPanels>
STOMPP_AVX2 void multiply_panels(const ProductBlock& block, const AffineOut& out) {
  multiply_section<kPanels>(block, 0, block.rows.k_bytes, AffineSink{out});
}

template <int kPanels>
STOMPP_AVX2 void multiply_panels(const ProductBlock& block, const BitsOut& out) {
  multiply_section<kPanels>(block, 0, block.rows.k_bytes, BitsSink{out});
}

template <class Out>
void multiply(const ProductBlock& block, const Out& out) {
  static_assert(kBlockPanels == 4, "the numbers of panels instantiated below");
  switch (block.panel_count) {
    case 1:
      return multiply_panels<1>(block, out);
    case 2:
      return multiply_panels<2>(block, out);
    case 3:
      return multiply_panels<3>(block, out);
    default:
      return multiply_panels<4>(block, out);
  }
}

}  // namespace

int64_t block_scratch_bytes(int64_t k_bytes) {
  return static_cast<int64_t>(sizeof(Scratch)) + kBlockRows / 2 * offset_stride(k_bytes) * 2;
}

STOMPP_AVX2 void prepare_block(const RowBlock& rows, void* scratch) {
  expand_pairs(rows, static_cast<Scratch*>(scratch)->offsets);
}

void multiply_block(const ProductBlock& block, const DotsOut& out) { multiply(block, out); }
void compare_block(const ProductBlock& block, const BitsOut& out) { multiply(block, out); }
void scale_block(const ProductBlock& block, const AffineOut& out) { multiply(block, out); }

}  // namespace avx2
}  // namespace stompp

#endif
