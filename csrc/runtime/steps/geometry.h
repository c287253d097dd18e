// Sizes of images and of windows that move over them.
#pragma once

#include "core/product/bconv2d.h"
#include "runtime/graph/planning.h"

namespace stompp::runtime {

struct Pixels {
  int64_t batch, height, width, channels;
};

inline Pixels pixels_of(const Value& images) {
  const int64_t* s = images.shape.sizes;
  return {s[0], s[2], s[3], s[1]};
}

// Reads stride, padding and dilation of the node's module or call, and checks them against the sizes.
Outcome conv2d_shape(const Planning& p, const Pixels& x, const WeightShape& w, int padding_value, Conv2dShape* shape);

// The window of a pooling.
struct Window {
  int64_t kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  bool ceil_mode;

  // Windows along one side; 0 where none fits.
  static int64_t count(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, bool ceil_mode);
};

Outcome window_of(const Planning& p, Window* window);

}  // namespace stompp::runtime
