// What floats with binary weights need from an instruction set.
#pragma once

#include <cstdint>

#include "core/base/float_types.h"
#include "core/binary_weight/channel_sum.h"
#include "core/binary_weight/signed_sum.h"

namespace stompp {

struct SignedSumKernels {
  SignedSumKernel sums;
  ChannelSumKernel channels;
  void (*widen)(const void* x, FloatType type, int64_t count, float* out);
  // sums * scale + bias, each operation rounded on its own; bias may be null.
  void (*scale_sums)(const float* sums, const float* scale, const float* bias, int64_t count, FloatType type,
                     void* out);
};

// The kernels of the instruction set that runs, or null where none can.
const SignedSumKernels* active_signed_sum_kernels();

}  // namespace stompp
