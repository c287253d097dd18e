// Byte lookup. Weights lie as bytes [K / 8][32 outputs]. For one byte of a row, pop(a ^ w) over 32 outputs is two
// table lookups, one for each nibble: `T[a_nibble][i] = pop(a_nibble ^ i)`, 16 tables that stay in L1, looked up with
// pshufb by the weights' nibbles. That is 4 vector instructions per 256 products; splitting a weight byte into nibbles
// is shared by the rows of a tile.
#include "core/avx2/avx2.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include <cstring>

namespace stompp {
namespace avx2 {
namespace {

// A byte adds at most 8 to a count: 31 * 8 = 248 fits 8 bits, 264 * 248 = 65472 fits 16 bits.
constexpr int kBytesPerSpill = 31;
constexpr int kSpillsPerFlush = 264;
static_assert(kBytesPerSpill * 8 <= 255 && kSpillsPerFlush * kBytesPerSpill * 8 <= 65535, "counts must not wrap");

struct Tables {
  alignas(64) uint8_t bytes[16][32];  // each table twice: pshufb looks up within 128-bit lanes

  constexpr Tables() : bytes() {
    for (int a = 0; a < 16; ++a)
      for (int i = 0; i < 32; ++i) {
        const int x = a ^ (i & 15);
        bytes[a][i] = static_cast<uint8_t>((x & 1) + (x >> 1 & 1) + (x >> 2 & 1) + (x >> 3 & 1));
      }
  }
};
constexpr Tables kTables;

STOMPP_AVX2 inline __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
STOMPP_AVX2 inline void store(void* p, __m256i v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }

// Adds 32 8-bit counts to 32 16-bit ones.
STOMPP_AVX2 inline void spill(__m256i counts, uint16_t* wide) {
  const __m256i low = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(counts));
  const __m256i high = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(counts, 1));
  store(wide, _mm256_add_epi16(load(wide), low));
  store(wide + 16, _mm256_add_epi16(load(wide + 16), high));
}

// Adds 32 16-bit counts to 32 32-bit ones and clears them.
STOMPP_AVX2 inline void flush(uint16_t* wide, int32_t* pops) {
  for (int i = 0; i < kPanelOutputs; i += 8) {
    const __m256i counts = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(wide + i)));
    store(pops + i, _mm256_add_epi32(load(pops + i), counts));
  }
  std::memset(wide, 0, kPanelOutputs * sizeof(uint16_t));
}

template <int kRows, int kPanels>
STOMPP_AVX2 void lookup(const Tile& tile) {
  alignas(32) uint16_t wide[kRows][kPanels][kPanelOutputs] = {};
  int spills = 0, pending = 0;
  __m256i counts[kRows][kPanels];
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p) {
      counts[r][p] = _mm256_setzero_si256();
      std::memset(tile.pops + (r * kTilePanels + p) * kPanelOutputs, 0, kPanelOutputs * sizeof(int32_t));
    }

  const __m256i nibble = _mm256_set1_epi8(15);
  const uint8_t* tables = kTables.bytes[0];
  int64_t panel_byte = 0;
  for (int64_t tap = 0; tap < tile.taps; ++tap) {
    const uint8_t* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = tile.rows[tap * kTileRows + r] + tile.row_offset;

    for (int64_t k = 0; k < tile.tap_bytes;) {
      const int64_t left = tile.tap_bytes - k, room = kBytesPerSpill - pending;
      const int64_t stop = k + (left < room ? left : room);
      pending += static_cast<int>(stop - k);
      for (; k < stop; ++k, panel_byte += kPanelOutputs) {
        __m256i low[kPanels], high[kPanels];
        for (int p = 0; p < kPanels; ++p) {
          const __m256i w = load(tile.panels[p] + panel_byte);
          low[p] = _mm256_and_si256(w, nibble);
          high[p] = _mm256_and_si256(_mm256_srli_epi16(w, 4), nibble);
        }
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const unsigned a = rows[r][k];
          const __m256i low_table = load(tables + ((a << 5) & 0x1e0u));
          const __m256i high_table = load(tables + ((a << 1) & 0x1e0u));
#pragma GCC unroll 2
          for (int p = 0; p < kPanels; ++p) {
            counts[r][p] = _mm256_add_epi8(counts[r][p], _mm256_shuffle_epi8(low_table, low[p]));
            counts[r][p] = _mm256_add_epi8(counts[r][p], _mm256_shuffle_epi8(high_table, high[p]));
          }
        }
      }
      if (pending < kBytesPerSpill) continue;
      for (int r = 0; r < kRows; ++r)
        for (int p = 0; p < kPanels; ++p) {
          spill(counts[r][p], wide[r][p]);
          counts[r][p] = _mm256_setzero_si256();
        }
      pending = 0;
      if (++spills < kSpillsPerFlush - 1) continue;  // one is kept for what is pending at the end
      for (int r = 0; r < kRows; ++r)
        for (int p = 0; p < kPanels; ++p) flush(wide[r][p], tile.pops + (r * kTilePanels + p) * kPanelOutputs);
      spills = 0;
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int p = 0; p < kPanels; ++p) {
      spill(counts[r][p], wide[r][p]);
      flush(wide[r][p], tile.pops + (r * kTilePanels + p) * kPanelOutputs);
    }
}

}  // namespace

void xor_popcount(const Tile& tile) {
  static_assert(kTileRows == 4 && kTilePanels == 2, "the tile sizes instantiated below");
  if (tile.row_count == 1) return tile.panel_count == 1 ? lookup<1, 1>(tile) : lookup<1, 2>(tile);
  return tile.panel_count == 1 ? lookup<4, 1>(tile) : lookup<4, 2>(tile);
}

}  // namespace avx2
}  // namespace stompp

#endif
