// Portable weight words to the order of cuda/weight_layout.h and back, on the device.
#pragma once

#include "core/base/status.h"
#include "core/product/packed_weight.h"
#include "cuda/platform.cuh"
#include "cuda/weight_layout.h"

namespace stompp::cuda {

// words: [out_channels][taps][words_for(in_channels)], tail bits ignored; out: WeightLayout::bytes(), 16-byte aligned.
Status pack_weight(const uint32_t* words, const WeightShape& shape, uint32_t* out, Stream stream);

// The inverse, with zero tails.
Status unpack_weight(const uint32_t* packed, const WeightShape& shape, uint32_t* words, Stream stream);

}  // namespace stompp::cuda
