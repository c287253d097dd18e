// Float rows to sign bits and back.
#pragma once

#include <cstdint>

#include "core/base/float_types.h"
#include "core/base/parallel.h"
#include "core/base/status.h"

namespace stompp {

// What a value's bit says: that it is negative, or, with limits of each channel, that it is below `low` or above
// `high`. So BatchNorm, which is monotone in a channel, and the sign after it are one comparison. NaN gives 0.
struct Limits {
  const float* low = nullptr;  // [K], both or neither
  const float* high = nullptr;
};

// x: [rows][K] contiguous (NHWC), fp32, fp16 or bf16; words: [rows][words_for(K)].
Status pack_signs(const void* x, FloatType type, int64_t rows, int64_t K, const Limits& limits, uint32_t* words,
                  const Parallel& pool);

// One image whose channels are planes (NCHW): the value of channel k at pixel p is x[k * stride + p].
struct Planes {
  const void* x;
  FloatType type;
  int64_t K, stride;
  Limits limits;
  uint32_t* words;  // [pixels][words_for(K)]
};

constexpr int kPlanePixels = 256;  // packed together: a plane is read a kilobyte of fp32 at a time

// x: images `image_stride` elements apart, each K planes `stride` elements apart, of `pixels` values that lie side by
// side; words: [images][pixels][words_for(K)].
Status pack_signs_planes(const void* x, FloatType type, int64_t images, int64_t image_stride, int64_t pixels, int64_t K,
                         int64_t stride, const Limits& limits, uint32_t* words, const Parallel& pool);

// Does the inverse, to +1 and -1 of `type`.
Status unpack_signs(const uint32_t* words, int64_t rows, int64_t K, void* out, FloatType type, const Parallel& pool);

}  // namespace stompp
