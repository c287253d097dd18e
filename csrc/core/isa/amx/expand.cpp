#include "core/isa/amx/expand.h"

#include "core/isa/amx/amx.h"
#include "core/isa/amx/tiles.h"

#if STOMPP_HAS_AMX

#include <immintrin.h>

namespace stompp {
namespace amx {
namespace {

// The matrix that copies bit 0 to the bits 1 to 7: byte 7 - i of a matrix selects what bit i of the result is.
constexpr uint64_t kCopyBit0 = 0x0001010101010101;
constexpr int kPlusOne = 1;

STOMPP_AMX_INLINE __m512i bit_of_each_copy() {
  const __m512i shifts = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm512_maskz_sllv_epi64(0xff, _mm512_set1_epi64(static_cast<int64_t>(kCopyBit0)), shifts);
}

STOMPP_AMX_INLINE __m512i copies(const uint8_t* bits) {
  return _mm512_maskz_broadcastq_epi64(0xff, _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bits)));
}

STOMPP_AMX_INLINE uint32_t below(__m512i first, __m512i second, __m512i low, __m512i high) {
  const uint32_t bits = _mm512_cmplt_epi32_mask(first, low);
  return bits | static_cast<uint32_t>(_mm512_cmplt_epi32_mask(second, high)) << 16;
}

}  // namespace

STOMPP_AMX void Expansion::row(const BitRuns& bits, int64_t steps, int8_t* out) {
  const __m512i matrices = bit_of_each_copy();
  const uint8_t* const* runs = bits.runs;
  const uint8_t* from = *runs + bits.offset;
  int64_t left = bits.run_bytes - bits.offset;
  while (true) {
    for (; left > 0 && steps > 0; left -= kStepBytes, --steps, from += kStepBytes, out += kTileStep)
      _mm512_store_si512(out, _mm512_gf2p8affine_epi64_epi8(copies(from), matrices, kPlusOne));
    if (steps == 0) return;
    from = *++runs;
    left = bits.run_bytes;
  }
}

STOMPP_AMX void Expansion::pixels(const uint8_t* bits, int64_t pixel_bytes, int64_t count, int64_t steps, int8_t* out) {
  const __m512i matrices = bit_of_each_copy();
  for (int64_t i = 0; i < count; ++i, bits += pixel_bytes)
    for (int64_t step = 0; step < steps; ++step, out += kTileRowBytes)
      _mm512_store_si512(out, _mm512_gf2p8affine_epi64_epi8(copies(bits + step * kStepBytes), matrices, kPlusOne));
}

STOMPP_AMX void Expansion::part_of_row(const uint8_t* bits, uint8_t valid, int8_t* out) {
  const __mmask64 bytes = valid * uint64_t{0x0101010101010101};  // for every copy
  _mm512_store_si512(out, _mm512_maskz_gf2p8affine_epi64_epi8(bytes, copies(bits), bit_of_each_copy(), kPlusOne));
}

STOMPP_AMX void Expansion::weights(const uint8_t* bits, bool half, int8_t* out) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  for (int tile = 0; tile < (half ? 1 : 2); ++tile, bits += 128) {
    const __m512i first = _mm512_loadu_si512(bits), second = _mm512_loadu_si512(bits + 64);
    const __m512i low = _mm512_permutex2var_epi32(first, even, second);
    const __m512i high = _mm512_permutex2var_epi32(first, odd, second);
#pragma GCC unroll 8
    for (int q = 0; q < 8; ++q, out += 2 * kTileRowBytes) {
      const __m512i matrix = _mm512_set1_epi64(static_cast<int64_t>(kCopyBit0 << q));
      _mm512_store_si512(out, _mm512_gf2p8affine_epi64_epi8(low, matrix, kPlusOne));
      _mm512_store_si512(out + kTileRowBytes, _mm512_gf2p8affine_epi64_epi8(high, matrix, kPlusOne));
    }
  }
}

STOMPP_AMX void Expansion::to_bits(const SumsToBits& rows) {
  const __m512i low = _mm512_loadu_si512(rows.thresholds), high = _mm512_loadu_si512(rows.thresholds + 16);
  const int32_t* sums = rows.sums;
  for (int64_t r = 0; r < rows.rows; ++r, sums += kPanelOutputs) {
    const __m512i first = _mm512_load_si512(sums), second = _mm512_load_si512(sums + 16);
    uint32_t bits = below(first, second, low, high);
    if (rows.residual != nullptr) {
      const __m512i other_low = _mm512_loadu_si512(rows.second_thresholds);
      const __m512i other_high = _mm512_loadu_si512(rows.second_thresholds + 16);
      const uint32_t residual = rows.residual[r * rows.stride];
      bits = (bits & ~residual) | (below(first, second, other_low, other_high) & residual);
    }
    rows.out[r * rows.stride] = bits ^ rows.flip;
  }
}

}  // namespace amx
}  // namespace stompp

#endif
