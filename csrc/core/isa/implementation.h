// What an instruction set provides: a table of kernels for each family. Each one is a folder that defines one
// Implementation; everything else in the core is written once on top of these kernels. README.md says how to add one.
#pragma once

#include "core/base/target.h"
#include "core/binary_weight/kernels.h"
#include "core/float_conv/kernels.h"
#include "core/masks/kernels.h"
#include "core/product/kernels.h"
#include "core/signs/kernels.h"

namespace stompp {

// A reason for Implementation::missing.
constexpr const char* kNoInstructions = "this processor lacks its instructions";

struct Implementation {
  const char* name;
  const char* description;
  // Null where it can run; else a reason, what the processor lacks or the operating system refuses.
  const char* (*missing)();

  const ProductKernels* product;  // with the layout of weights that they read
  const PlaneKernels* planes;
  const PackKernels* signs;
  const MaskKernels* masks;
  const SignedSumKernels* signed_sums;
  const FloatConvKernels* float_conv;
};

}  // namespace stompp
