// Bits to bytes of +1 and -1, in the order in which tiles are multiplied, and sums to bits.
//
// A step is 64 bits of K, 8 bytes. Byte 8 q + b of a tile's row is bit q of byte b: one GF2P8AFFINEQB of eight copies
// of the 8 bytes, whose matrix for copy q moves bit q to the bits 1 to 7 of every byte, while its constant sets bit 0.
// A bit of 0 becomes 1, and a bit of 1 becomes 255, which is -1. A tile of weights holds four bytes of K of 16 outputs
// in a row, so its row 2 q + h holds bit q of the bytes 4 h .. 4 h + 3.
#pragma once

#include <cstdint>

namespace stompp {
namespace amx {

constexpr int64_t kStepBytes = 8;  // of bits

// Bits of a row in runs of equal length, a multiple of kStepBytes.
struct BitRuns {
  const uint8_t* const* runs;  // the first
  int64_t offset;              // in the first, where the bits begin
  int64_t run_bytes;
};

// Sums of a panel's 32 outputs in some rows, each of which becomes a word of bits, (sum < threshold) ^ flip.
struct SumsToBits {
  const int32_t* sums;  // [rows][32]
  int64_t rows;
  const int32_t* thresholds;         // [32]
  const int32_t* second_thresholds;  // for outputs whose residual's bit is set; null without residual
  const uint32_t* residual;
  uint32_t flip;
  uint32_t* out;
  int64_t stride;  // words from a row of `out`, and of `residual`, to the next
};

struct Expansion {
  // `steps` steps of a row; those of one row lie kTileStep bytes apart.
  static void row(const BitRuns& bits, int64_t steps, int8_t* out);
  // The steps of some pixels, side by side.
  static void pixels(const uint8_t* bits, int64_t pixel_bytes, int64_t count, int64_t steps, int8_t* out);
  // One step of a row, of which bit b of `valid` says whether byte b counts: the others become zeros.
  static void part_of_row(const uint8_t* bits, uint8_t valid, int8_t* out);
  // One step of a panel's 32 outputs, [32][8 bytes], to two tiles, or of the first 16 to one.
  static void weights(const uint8_t* bits, bool half, int8_t* out);
  static void to_bits(const SumsToBits& rows);
};

}  // namespace amx
}  // namespace stompp
