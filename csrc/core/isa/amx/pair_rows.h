// The rows of a pair of tiles, as the products load them, and the output rows that these are.
#pragma once

#include <cstdint>

#include "core/isa/amx/tiles.h"

namespace stompp {
namespace amx {

constexpr int64_t kPairRows = 2 * kTileRows;

// Rows of a pair that are output rows beside each other. Row r of tile t has the number t * kTileRows + r.
struct RowSpan {
  int64_t row, first, count;
};

struct PairRows {
  TilesOfRows tiles;  // of the first step; where the others lie from there on is the feeder's to say
  RowSpan spans[kPairRows];
  int64_t span_count;
  int32_t spare[kPairRows];  // what the bits past taps' ends add to a row's sums

  void clear() { span_count = 0; }
  void add(int64_t row, int64_t first, int64_t count) {
    if (count > 0) spans[span_count++] = {row, first, count};
  }
  // Whether each tile's rows are output rows beside each other.
  bool is_full(int64_t tile_rows) const {
    return span_count == 2 && spans[0].count == tile_rows && spans[1].count == tile_rows;
  }
};

}  // namespace amx
}  // namespace stompp
