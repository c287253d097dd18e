// Portable C++: runs anywhere, and is the fallback that every faster implementation is compared with.
#pragma once

#include "core/isa/implementation.h"

namespace stompp {
namespace scalar {

extern const Implementation kImplementation;

constexpr int kTilePixels = 1;
void multiply_tile(const FloatTile& tile, const FloatTileOut& out);
void compare_tile(const FloatTile& tile, const FloatTileBits& out);
void transform_lines(const float* const* lines, int64_t floats, float* out, int64_t out_stride,
                     winograd::Largest& largest);
void compare_rows(const winograd::Tile& tile, winograd::Bits& bits);

}  // namespace scalar
}  // namespace stompp
