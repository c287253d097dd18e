// 64-bit Arm: NEON is part of its baseline, so no function needs a target of its own.
#pragma once

#if defined(__aarch64__)

#include "core/isa/implementation.h"

namespace stompp {
namespace neon {

extern const Implementation kImplementation;

void multiply_block(const ProductBlock& block, const DotsOut& out);

constexpr int kTilePixels = 3;
void multiply_tile(const FloatTile& tile, const FloatTileOut& out);
void compare_tile(const FloatTile& tile, const FloatTileBits& out);
void transform_lines(const float* const* lines, int64_t floats, float* out, int64_t out_stride,
                     winograd::Largest& largest);
void compare_rows(const winograd::Tile& tile, winograd::Bits& bits);

}  // namespace neon
}  // namespace stompp

#endif
