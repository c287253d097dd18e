// Bits to bytes of +1 and -1, in the order in which tiles are multiplied.
//
// A step is 64 bits of K, 8 bytes. Byte 8 q + b of a tile's row is bit q of byte b: one GF2P8AFFINEQB of eight copies
// of the 8 bytes, whose matrix for copy q moves bit q to the bits 1 to 7 of every byte, while its constant sets bit 0.
// That is 1 for a bit of 0 and 255, which is -1, for a bit of 1. A tile of weights holds four bytes of K of 16 outputs
// in a row, so its row 2 q + h holds bit q of the bytes 4 h .. 4 h + 3.
#pragma once

#include <cstdint>

namespace stompp {
namespace amx {

constexpr int64_t kStepBytes = 8;  // of bits

struct Expansion {
  // `steps` steps of a row; those of one row lie TileBlock::kStep bytes apart.
  static void row(const uint8_t* bits, int64_t steps, int8_t* out);
  // One step of a row, of which bit b of `valid` says whether byte b counts: the others become zeros.
  static void part_of_row(const uint8_t* bits, uint8_t valid, int8_t* out);
  // One step of 16 outputs, [16][8 bytes], to a tile.
  static void weights(const uint8_t* bits, int8_t* out);
};

}  // namespace amx
}  // namespace stompp
