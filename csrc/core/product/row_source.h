// Where the rows of a product come from: bgemm's lie in a matrix, bconv2d gathers them from an image.
#pragma once

#include <cstdint>

#include "core/product/taps.h"

namespace stompp {

// Rows beside each other that have the same valid taps.
struct TapSpan {
  int64_t rows;
  ValidTaps valid;
};

// The image whose windows are the rows of a convolution: NHWC bits, each pixel's groups beside each other.
struct BitImage {
  const uint8_t* x;  // null where rows are not those of a convolution
  int64_t batch, height, width, pixel_bytes, group_bytes;
  int64_t out_height, out_width;
  int64_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int padding_value;
};

// A source of rows without its type; blocks.h says what a source offers.
struct AnyRows {
  const void* source;
  BitImage image;
  int64_t runs_per_row, run_bytes, memory_bytes;
  int64_t (*gather_from)(const void* source, int64_t first, int64_t count, int64_t group, const uint8_t** runs,
                         uint8_t* memory, TapSpan* spans);

  template <class Source>
  static AnyRows of(const Source& source) {
    return {&source,
            source.image(),
            source.runs_per_row(),
            source.run_bytes(),
            source.memory_bytes(),
            [](const void* from, int64_t first, int64_t count, int64_t group, const uint8_t** runs, uint8_t* memory,
               TapSpan* spans) {
              return static_cast<const Source*>(from)->gather(first, count, group, runs, memory, spans);
            }};
  }

  int64_t gather(int64_t first, int64_t count, int64_t group, const uint8_t** runs, uint8_t* memory,
                 TapSpan* spans) const {
    return gather_from(source, first, count, group, runs, memory, spans);
  }
};

}  // namespace stompp
