// Sizes of images and of windows that move over them.
#pragma once

#include <algorithm>

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

// Positions along one side of an image, which may lie outside.
struct Range {
  int64_t begin, end, step;

  int64_t size() const { return end - begin; }
  Range inside(int64_t side) const { return {std::max<int64_t>(begin, 0), std::min(end, side), step}; }
};

// The window of a pooling, along both sides.
struct Window {
  struct Side {
    int64_t kernel, stride, padding, dilation;

    int64_t count(int64_t size, bool ceil_mode) const;  // of windows; 0 where none fits
    Range at(int64_t i, int64_t end) const {
      const int64_t begin = i * stride - padding;
      return {begin, std::min(begin + (kernel - 1) * dilation + 1, end), dilation};
    }
  };
  Side height, width;
  bool ceil_mode;
};

Outcome window_of(const Planning& p, Window* window);

}  // namespace stompp::runtime
