// Convolution of small groups: groups of g = 1 (depthwise), 2, 4 or 8 channels in and out. Bits of 32 neighbouring
// channels lie in one word, so a tap is one XOR for 32 channels. With g channels in a group a tap is g of them: in turn
// r, output o of a group reads the group's channel (o + r) % g, which are the input's words with the bits of each group
// rotated by r. What differs is counted in bit planes; see bit_planes.h.
//
// Weights are words of channels too, [words_for(channels)][g][taps].
#pragma once

#include <cstdint>

#include "core/base/parallel.h"
#include "core/base/status.h"
#include "core/product/bconv2d.h"
#include "core/product/epilogue.h"
#include "core/product/kernels.h"
#include "core/product/packed_weight.h"

namespace stompp {

// Packs portable words [channels][taps][1] in that order, and back.
void pack_small_groups(const uint32_t* words, const WeightShape& shape, uint32_t* out, const Parallel& pool);
void unpack_small_groups(const uint32_t* packed, const WeightShape& shape, uint32_t* words, const Parallel& pool);

// As bconv2d, for a weight whose shape has small_groups(). The arguments were checked.
Status small_groups_conv2d(const ProductKernels& kernels, const uint32_t* x, const Conv2dShape& shape,
                           const PackedWeight& weight, const Epilogue& epilogue, const Parallel& pool);

}  // namespace stompp
