// x * y + z, rounded once.
#pragma once

#include <cstdint>

#include "core/base/float_types.h"

namespace stompp {

#if defined(__wasm__)

// There is no instruction for it. The product of two float32 is exact in float64. A sum that is not is rounded to odd:
// toward zero, with the last bit set. Rounded again, to float32, it is as if rounded once (Boldo & Melquiond 2008).
inline float fused_multiply_add(float x, float y, float z) {
  const double product = static_cast<double>(x) * y, sum = product + z;
  const double part = sum - product, error = (product - (sum - part)) + (z - part);  // Knuth's TwoSum
  const bool inexact = error > 0 || error < 0;                                       // not where it is NaN
  const bool beyond = (bit_cast<int64_t>(error) ^ bit_cast<int64_t>(sum)) < 0;
  const int64_t toward_zero = bit_cast<int64_t>(sum) - (inexact && beyond ? 1 : 0);
  return static_cast<float>(bit_cast<double>(toward_zero | (inexact ? 1 : 0)));
}

#else

// Inlined, so that it is the instruction of whatever target its caller is compiled for.
__attribute__((always_inline)) inline float fused_multiply_add(float x, float y, float z) {
  return __builtin_fmaf(x, y, z);
}

#endif

}  // namespace stompp
