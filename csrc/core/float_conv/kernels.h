// What convolutions of floats need from an instruction set.
#pragma once

#include "core/float_conv/bf16_block.h"
#include "core/float_conv/float_tile.h"
#include "core/float_conv/winograd.h"

namespace stompp {

struct FloatConvKernels {
  FloatTileKernel tiles;
  FloatTileKernel unfused;  // nulls, or faster than `tiles`: rounds products before it adds them
  winograd::Kernel winograd;
  Bf16Kernels bf16;
};

// The kernels of the instruction set that runs, or null where none can.
const FloatConvKernels* active_float_conv_kernels();

}  // namespace stompp
