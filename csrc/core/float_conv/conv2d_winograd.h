// Computes the bits of conv2d_float by winograd.h. They are the same: what it leaves in doubt is added up once more, as
// a chain.
#pragma once

#include "core/float_conv/conv2d_float.h"
#include "core/float_conv/kernels.h"

namespace stompp {

// whole_limits: conv.limits, and behind the last output those that no sum is outside of, [ceil(O / 32) * 32].
// Sets `done` to false, and writes nothing, where it does not pay or has no bounds.
Status conv2d_winograd(const FloatConvKernels& kernels, const FloatConv& conv, const Conv2dShape& shape,
                       const WeightShape& weight, const Limits& whole_limits, const Parallel& pool, bool* done);

}  // namespace stompp
