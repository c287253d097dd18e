// Binary 2-D convolution over NHWC bits: an implicit matrix product, no im2col buffer.
#pragma once

#include <cstdint>

#include "core/base/parallel.h"
#include "core/base/status.h"
#include "core/product/epilogue.h"
#include "core/product/packed_weight.h"

namespace stompp {

struct Conv2dShape {
  int64_t batch, height, width;  // of the input
  int64_t channels;              // of the input, all groups
  int64_t stride_h, stride_w;
  int64_t padding_h, padding_w;
  int64_t dilation_h, dilation_w;
  int padding_value;  // 0: a padded tap adds nothing, as in torch; +1 or -1: it reads as that value

  int64_t out_height(const WeightShape& w) const {
    return (height + 2 * padding_h - dilation_h * (w.kernel_h - 1) - 1) / stride_h + 1;
  }
  int64_t out_width(const WeightShape& w) const {
    return (width + 2 * padding_w - dilation_w * (w.kernel_w - 1) - 1) / stride_w + 1;
  }
};

// Checks that sizes fit, that the kernel's reach fits the padded input, and that channels = in_channels * groups.
Status check_conv2d(const Conv2dShape& shape, const WeightShape& weight);

// x: [batch][height][width][words_for(channels)] words with zero tails. Output rows are the pixels (n, oh, ow) in that
// order; epilogue.N = out_channels.
Status bconv2d(const uint32_t* x, const Conv2dShape& shape, const PackedWeight& weight, const Epilogue& epilogue,
               const Parallel& pool);

}  // namespace stompp
