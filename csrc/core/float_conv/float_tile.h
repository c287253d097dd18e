// Sums of some pixels' floats with a panel of 32 outputs' float weights; see conv2d_float.h for their order.
#pragma once

#include <cstdint>

namespace stompp {

constexpr int64_t kMostTilePixels = 16;

struct FloatTile {
  const float* const* runs;  // what the first pixel reads, [run_count][run_floats]
  int64_t run_count, run_floats;
  int64_t step;          // floats from what a pixel reads to what the next one does
  int64_t pixels;        // 1 .. FloatTileKernel::pixels
  const float* weights;  // [run_count * run_floats][32]
  const float* ahead;    // weights that a later tile reads first, to be fetched meanwhile
  int64_t ahead_floats;
};

struct FloatTileOut {
  const float* scale;  // [32], or null: sum * scale + bias
  const float* bias;
  bool fused;
  float* out;  // [pixels][stride], 32 of each
  int64_t stride;
};

// Bit n of a pixel's word says that its sum is below low[n] or above high[n].
struct FloatTileBits {
  const float* low;  // [32]
  const float* high;
  uint32_t* words;  // [pixels][stride], one of each
  int64_t stride;
};

struct FloatTileKernel {
  int64_t pixels;  // most pixels of a tile, at most kMostTilePixels
  void (*multiply)(const FloatTile& tile, const FloatTileOut& out);
  void (*compare)(const FloatTile& tile, const FloatTileBits& out);
};

}  // namespace stompp
