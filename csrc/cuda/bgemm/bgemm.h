// Binary matrix product on a GPU: core/product/bgemm.h with device pointers and a stream.
#pragma once

#include "core/base/status.h"
#include "core/product/epilogue.h"
#include "cuda/device.h"
#include "cuda/platform.cuh"
#include "cuda/product/product.h"

namespace stompp::cuda {

// a: [M][words_for(K)] words with zero tails. weight.shape is {N, K, 1, 1, 1}; epilogue.N = N. Queues kernels, waits
// for nothing, allocates nothing.
Status bgemm(const uint32_t* a, int64_t M, const DeviceWeight& weight, const Epilogue& epilogue, const Device& device,
             Stream stream);

}  // namespace stompp::cuda
