// Binary 2-D convolution over NHWC bits on a GPU: core/product/bconv2d.h with device pointers and a stream.
#pragma once

#include "core/base/status.h"
#include "core/product/bconv2d.h"
#include "core/product/epilogue.h"
#include "cuda/device.h"
#include "cuda/platform.cuh"
#include "cuda/product/product.h"

namespace stompp::cuda {

// x: [batch][height][width][words_for(channels)] words with zero tails; `shape` has passed check_conv2d. Output rows
// are the pixels (n, oh, ow) in that order; epilogue.N = out_channels. Queues kernels, waits for nothing, allocates
// nothing.
Status bconv2d(const uint32_t* x, const Conv2dShape& shape, const DeviceWeight& weight, const Epilogue& epilogue,
               const Device& device, Stream stream);

}  // namespace stompp::cuda
