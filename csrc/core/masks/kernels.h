// What masks and the progressive op need from an instruction set.
#pragma once

#include <cstdint>

#include "core/masks/philox.h"
#include "core/masks/progressive.h"
#include "core/masks/refresh_mask.h"

namespace stompp {

// `count` entries whose mask begins on a word.
struct ProgressiveRow {
  const void* u;
  const void* grad;
  void* out;
  FloatType type;
  int64_t count;
  const uint32_t* mask;
  Surrogate surrogate;
  uint32_t* gate;
  const DrawnMask* drawn;
  int64_t first_word;  // of the mask
};

struct GateRow {
  const void* grad;
  const uint32_t* gate;
  void* out;
  FloatType type;
  int64_t count;
};

struct MaskKernels {
  // One row of a mask; see progressive.h.
  void (*progressive_forward)(const ProgressiveRow& row);
  void (*progressive_backward)(const ProgressiveRow& row);
  void (*gate_backward)(const GateRow& row);

  // Words [begin, end) of a mask of n entries; see refresh_mask.h.
  void (*refresh_words)(const RefreshMask& refresh, uint32_t* words, int64_t begin, int64_t end);
};

// The kernels of the instruction set that runs, or null where none can.
const MaskKernels* active_mask_kernels();

}  // namespace stompp
