// Computes conv2d_float by bf16_block.h, from weights that were brought into its order once. Results differ from the
// chain's by rounding, of inputs and weights first of all, and do not depend on threads.
#pragma once

#include "core/float_conv/conv2d_float.h"
#include "core/float_conv/kernels.h"

namespace stompp {

// conv.bf16_weights is not null. constants: conv's scales or low limits, and biases or high limits, for whole panels.
Status conv2d_bf16(const FloatConvKernels& kernels, const FloatConv& conv, const Conv2dShape& shape,
                   const WeightShape& weight, const float* const (&constants)[2], const Parallel& pool);

// Writes FloatConv::weights, each the sum of the parts of bf16_weights.
void join_weights(const FloatConv& conv, const WeightShape& weight, float* out);

}  // namespace stompp
