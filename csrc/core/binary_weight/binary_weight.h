// Float activations with binary weights, as in Binary-Weight-Networks (Rastegari et al., ECCV 2016):
//
//     y = scale[n] * sum over k of x[k] * w[n][k] + bias[n], w in {-1, +1}
//
// in float32. The sum takes additions only, in an order that depends on neither the number of threads nor the other
// rows.
#pragma once

#include <cstdint>

#include "core/base/float_types.h"
#include "core/base/parallel.h"
#include "core/base/status.h"
#include "core/product/bconv2d.h"
#include "core/product/packed_weight.h"

namespace stompp {

struct FloatProduct {
  const void* x;
  void* out;
  FloatType type;      // of both: float32, float16 or bfloat16
  const float* scale;  // [out_channels]
  const float* bias;   // the same, or null
};

// x: [batch][height][width][channels], out: [batch][out_height][out_width][out_channels]. Zero padding, as in torch;
// shape.padding_value is 0.
Status conv2d_binary_weight(const FloatProduct& product, const Conv2dShape& shape, const PackedWeight& weight,
                            const Parallel& pool);

// x: [M][K], out: [M][N]. weight.shape is {N, K, 1, 1, 1}.
Status linear_binary_weight(const FloatProduct& product, int64_t M, const PackedWeight& weight, const Parallel& pool);

}  // namespace stompp
