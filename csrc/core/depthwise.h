// Depthwise convolution: every output channel reads one input channel. Bits of 32 neighbouring channels lie in one
// word, so weights are words of channels too, [words_for(channels)][taps], and a tap is one XOR for 32 channels.
#pragma once

#include <cstdint>

#include "core/bconv2d.h"
#include "core/epilogue.h"
#include "core/packed_weight.h"
#include "core/parallel.h"
#include "core/status.h"

namespace stompp {

// Portable words [channels][taps][1] to [words_for(channels)][taps], and back.
void pack_depthwise(const uint32_t* words, const WeightShape& shape, uint32_t* out, const Parallel& pool);
void unpack_depthwise(const uint32_t* packed, const WeightShape& shape, uint32_t* words, const Parallel& pool);

// As bconv2d, for a weight whose shape is_depthwise(). The arguments were checked.
Status depthwise_conv2d(const uint32_t* x, const Conv2dShape& shape, const PackedWeight& weight,
                        const Epilogue& epilogue, const Parallel& pool);

}  // namespace stompp
