// Portable C++: runs anywhere, and is the fallback that every faster implementation is compared with.
#pragma once

#include "core/implementation.h"

namespace stompp {
namespace scalar {

extern const Implementation kImplementation;

constexpr int kTilePixels = 1;
void multiply_tile(const FloatTile& tile, const FloatTileOut& out);
void compare_tile(const FloatTile& tile, const FloatTileBits& out);

}  // namespace scalar
}  // namespace stompp
