// Convolution of floats, or of the +-1 that bits stand for, with float weights: the layers of a packed network that
// stay in float. What follows them folds into what they write: BatchNorm, or BatchNorm and sign.
//
// A sum is one chain of fused multiply-adds that begins at 0 and goes over the kernel's rows, its columns, and
// channels. So results depend on neither instruction set nor threads, and are oneDNN's for channels_last, bit for bit.
#pragma once

#include <cstdint>

#include "core/base/parallel.h"
#include "core/base/status.h"
#include "core/product/bconv2d.h"
#include "core/signs/pack.h"

namespace stompp {

struct FloatConv {
  const float* x;         // [batch][height][width][channels], or null
  const uint32_t* words;  // the same as bits, [batch][height][width][words_for(channels)], where x is null
  const float* weights;   // [ceil(O / 32)][kernel_h][kernel_w][channels][32], zeros behind the last output
  // Instead of them: [ceil(O / 32)][ceil(K / 32)] steps of K = kernel_h * kernel_w * channels, see bf16_block.h, with
  // zeros behind the last output and the last input. Where the processor does not multiply bfloat16, sums of the parts
  // are multiplied as floats.
  const uint16_t* bf16_weights;
  int64_t bf16_parts;  // 1 or 2
  const float* scale;  // [O], or null: sum * scale + bias, rounded once if fused, else twice
  const float* bias;   // [O], null where scale is
  bool fused;
  float* out;           // [batch][out_height][out_width][O], or null
  Limits limits;        // [O], where out is null: signs of what follows, see pack.h
  uint32_t* out_words;  // [batch][out_height][out_width][words_for(O)]
  // Allows sums in which each product is rounded: they are faster where an instruction set has no fused multiply-add.
  bool unfused_sums = false;
};

// Padding is zero, as in torch: shape.padding_value is 0. The weight has one group.
Status conv2d_float(const FloatConv& conv, const Conv2dShape& shape, const WeightShape& weight, const Parallel& pool);

}  // namespace stompp
