#include "core/depthwise.h"

#include <atomic>
#include <cstring>
#include <memory>
#include <new>

#include "core/dispatch.h"

namespace stompp {
namespace {

// One output pixel: where its first tap lies, or would lie if it were inside.
struct OutputPixel {
  int64_t image, top, left;
  bool interior;  // every tap is inside
};

struct DepthwiseTaps {
  const uint32_t* x;
  const uint32_t* weight;
  Conv2dShape shape;
  WeightShape weight_shape;
  int64_t out_height, out_width, words;

  OutputPixel pixel(int64_t m) const {
    const int64_t ow = m % out_width, oh = m / out_width % out_height;
    OutputPixel pixel = {m / out_width / out_height, oh * shape.stride_h - shape.padding_h,
                         ow * shape.stride_w - shape.padding_w, false};
    const int64_t bottom = pixel.top + (weight_shape.kernel_h - 1) * shape.dilation_h;
    const int64_t right = pixel.left + (weight_shape.kernel_w - 1) * shape.dilation_w;
    pixel.interior = pixel.top >= 0 && pixel.left >= 0 && bottom < shape.height && right < shape.width;
    return pixel;
  }

  // The XORs of one word of channels at a pixel, of the taps that count; returns how many those are.
  int64_t differences(const OutputPixel& pixel, int64_t word, uint32_t* out) const {
    const uint32_t* w = weight + word * weight_shape.taps();
    const uint32_t padding = shape.padding_value == -1 ? valid_bits(shape.channels, word) : 0;
    const int64_t step = shape.dilation_w * words;
    int64_t count = 0;
    for (int64_t kh = 0; kh < weight_shape.kernel_h; ++kh) {
      const int64_t h = pixel.top + kh * shape.dilation_h;
      const int64_t row = ((pixel.image * shape.height + h) * shape.width + pixel.left) * words + word;
      for (int64_t kw = 0; kw < weight_shape.kernel_w; ++kw, ++w) {
        const int64_t v = pixel.left + kw * shape.dilation_w;
        if (pixel.interior || (h >= 0 && h < shape.height && v >= 0 && v < shape.width))
          out[count++] = x[row + kw * step] ^ *w;
        else if (shape.padding_value != 0)
          out[count++] = padding ^ *w;
      }
    }
    return count;
  }
};

}  // namespace

void pack_depthwise(const uint32_t* words, const WeightShape& shape, uint32_t* out, const Parallel& pool) {
  const int64_t taps = shape.taps();
  parallel_for(pool, words_for(shape.out_channels), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t tap = 0; tap < taps; ++tap) {
        uint32_t word = 0;
        for (int64_t n = 0; n < kWordBits && i * kWordBits + n < shape.out_channels; ++n)
          word |= (words[(i * kWordBits + n) * taps + tap] & 1u) << n;
        out[i * taps + tap] = word;
      }
  });
}

void unpack_depthwise(const uint32_t* packed, const WeightShape& shape, uint32_t* words, const Parallel& pool) {
  const int64_t taps = shape.taps();
  parallel_for(pool, shape.out_channels, 512, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t tap = 0; tap < taps; ++tap)
        words[n * taps + tap] = packed[n / kWordBits * taps + tap] >> (n % kWordBits) & 1u;
  });
}

Status depthwise_conv2d(const uint32_t* x, const Conv2dShape& shape, const PackedWeight& weight,
                        const Epilogue& epilogue, const Parallel& pool) {
  const Implementation* implementation = active_implementation();
  const WeightShape& w = weight.shape;
  const DepthwiseTaps taps = {x,
                              reinterpret_cast<const uint32_t*>(weight.panels),
                              shape,
                              w,
                              shape.out_height(w),
                              shape.out_width(w),
                              words_for(shape.channels)};
  const int64_t M = shape.batch * taps.out_height * taps.out_width;
  const int64_t rows = taps.out_width < kBlockRows ? taps.out_width : kBlockRows;

  std::atomic<bool> out_of_memory{false};
  parallel_for(pool, ceil_div(M, rows), 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<uint32_t[]> differences(new (std::nothrow) uint32_t[static_cast<size_t>(w.taps())]);
    if (differences == nullptr) {
      out_of_memory = true;
      return;
    }
    alignas(64) int32_t values[kBlockRows * kPanelOutputs];
    OutputPixel pixels[kBlockRows];
    for (int64_t block = begin; block < end; ++block) {
      for (int64_t r = 0; r < rows; ++r) pixels[r] = taps.pixel(block * rows + r);
      for (int64_t word = 0; word < taps.words; ++word) {
        const int64_t first = block * rows, left = shape.channels - word * kPanelOutputs;
        Dots dots = {first,
                     M - first < rows ? M - first : rows,
                     word * kPanelOutputs,
                     left < kPanelOutputs ? left : kPanelOutputs,
                     values,
                     kPanelOutputs};
        for (int64_t r = 0; r < dots.rows; ++r) {
          const int64_t count = taps.differences(pixels[r], word, differences.get());
          implementation->sum_bits(differences.get(), count, values + r * kPanelOutputs);
        }
        finish(epilogue, *implementation, dots);
      }
    }
  });
  return out_of_memory ? Status::error("out of memory") : Status::ok();
}

}  // namespace stompp
