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

// Products of the rows of two activations, as of queries and keys: each is a bgemm whose weight was packed just now.
struct BatchedShape {
  int64_t batch, M, N, K;
};

// Checks that N and K are those of a weight and that no size is negative.
Status check_batched(const BatchedShape& shape);

// out[i][m][n] = K - 2*pop(a[i][m] ^ b[i][n]). a: [batch][M][words_for(K)] words with zero tails, b: the same with N
// rows, whose tails are ignored. `shape` has passed check_batched.
Status batched_bgemm(const uint32_t* a, const uint32_t* b, const BatchedShape& shape, int32_t* out,
                     const Parallel& pool);

}  // namespace stompp
