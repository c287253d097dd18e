// The rows of a pair of tiles, as the products load them.
#pragma once

#include <cstdint>

#include "core/amx/tiles.h"

namespace stompp {
namespace amx {

struct PairRows {
  int64_t first[2], count[2];   // of each tile's output rows
  TilesOfRows tiles;            // its steps lie where the feeder's offsets say
  int32_t spare[2][kTileRows];  // what the bits past taps' ends add to a row's sums
};

}  // namespace amx
}  // namespace stompp
