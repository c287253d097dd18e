// Sums of floats with signs of bits in small groups (product/small_groups.h): an output reads inputs of its own word of
// channels, so that vectors of channels are multiplied as they lie, and nothing is looked up.
//
// Signs are expanded once a call to floats of +1 and -1. Products with them are exact: a fused multiply-add rounds as
// an addition does.
#pragma once

#include <cstdint>

namespace stompp {

// Output pixels beside each other that read the same taps.
struct ChannelSumBlock {
  const float* const* inputs;  // of each tap, what the first pixel reads: [words][turns][32]
  const int32_t* taps;         // which taps of the weight these are
  int64_t tap_count;
  int64_t pixels;
  int64_t pixel_step;    // floats from a pixel's inputs to the next one's
  const float* weights;  // [words][turns][weight_taps][32]
  int64_t weight_taps;
  int64_t turns;
  int64_t channels;    // whole words, or as many of them as there are vectors of ChannelSumKernel::lanes
  const float* scale;  // [channels], or null: the sums themselves are written
  const float* bias;   // the same
  float* out;          // [pixels][stride]
  int64_t stride;
};

struct ChannelSumKernel {
  int64_t lanes;  // of a vector
  // Turns `inputs` channels of a pixel into [words][turns][32] of a block's inputs: output c finds what it reads at c.
  void (*prepare)(const float* x, int64_t inputs, int64_t turns, float* prepared);
  void (*add_up)(const ChannelSumBlock& block);
};

}  // namespace stompp
