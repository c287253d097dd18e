// Convolution of small groups on a GPU: depthwise, and groups of 2, 4 or 8 channels in and out.
#pragma once

#include "cuda/bconv2d/bconv2d.h"

namespace stompp::cuda {

// As bconv2d, for a weight whose shape has small_groups().
Status small_groups_conv2d(const uint32_t* x, const Conv2dShape& shape, const DeviceWeight& weight,
                           const Epilogue& epilogue, Stream stream);

}  // namespace stompp::cuda
