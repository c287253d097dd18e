// Binary matrix product: dot(a[m], w[n]) = K - 2*pop(a[m] ^ w[n]), int32, then an epilogue.
#pragma once

#include <cstdint>

#include "core/base/parallel.h"
#include "core/base/status.h"
#include "core/product/epilogue.h"
#include "core/product/packed_weight.h"

namespace stompp {

// a: [M][words_for(K)] words with zero tails. weight.shape is {N, K, 1, 1, 1}; epilogue.N = N.
Status bgemm(const uint32_t* a, int64_t M, const PackedWeight& weight, const Epilogue& epilogue, const Parallel& pool);

}  // namespace stompp
