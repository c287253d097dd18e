// Max pooling of signs on bits: the largest of some values of {-1, +1} is -1 where all are, which is AND.
#pragma once

#include <cstdint>

#include "core/base/parallel.h"
#include "core/base/status.h"

namespace stompp {

struct MaxPoolShape {
  int64_t batch, height, width;  // of the input
  int64_t words;                 // of a pixel
  int64_t kernel_h, kernel_w;
  int64_t stride_h, stride_w;
  int64_t padding_h, padding_w;
  int64_t dilation_h, dilation_w;
  bool ceil_mode;  // the last windows may reach beyond the padding

  int64_t out_height() const;
  int64_t out_width() const;
};

// Checks that sizes fit, and that each window has a pixel of the input.
Status check_max_pool(const MaxPoolShape& shape);

// x: [batch][height][width][words]; out: [batch][out_height][out_width][words]. The shape has been checked.
Status max_pool2d_signs(const uint32_t* x, const MaxPoolShape& shape, uint32_t* out, const Parallel& pool);

}  // namespace stompp
