// Rows that are windows of an image whose pixels are expanded once: a tile is a tap of some output pixels beside each
// other, loaded from the expanded image with the stride of these pixels. Padding is expanded too, as zeros or +-1.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/isa/amx/expand.h"
#include "core/isa/amx/pair_rows.h"
#include "core/isa/amx/plan.h"
#include "core/isa/amx/tiles.h"

namespace stompp {
namespace amx {

template <class Expand>
class ExpandedImage {
 public:
  // What a tile has behind the last output is computed from what follows the image in memory.
  static int64_t memory_bytes(const Plan& plan) {
    return plan.image_bytes() + kTileRows * plan.source.image.stride_w * plan.weight.shape.in_channels;
  }

  ExpandedImage(const Plan& plan) : plan_(plan) {}
  // Memory for two images, aligned to cache lines, and for an offset of each step.
  void set_memory(int8_t* even, int8_t* odd, int64_t* offsets);

  // Begins to expand what a pair's rows read and no earlier pair did; returns in how many tasks.
  int64_t start(int64_t group, int64_t pair, PairRows* rows);
  void run_task();
  const int64_t* offsets() const { return offsets_; }

 private:
  static constexpr int64_t kTaskSteps = 16;

  // The lines [begin, end) of a group of an image are expanded.
  struct Lines {
    int64_t image, group, begin, end;
    int8_t* bytes;
  };

  int64_t task_pixels() const { return kTaskSteps * 8 * kStepBytes / plan_.weight.shape.in_channels + 1; }
  void fill(int8_t* out, int64_t pixels) const {
    std::memset(out, plan_.source.image.padding_value, static_cast<size_t>(pixels * plan_.weight.shape.in_channels));
  }

  const Plan& plan_;
  Lines lines_[2] = {};  // of images with even and with odd numbers
  int64_t* offsets_ = nullptr;
  Lines* now_ = nullptr;
  int64_t next_pixel_ = 0;
};

template <class Expand>
void ExpandedImage<Expand>::set_memory(int8_t* even, int8_t* odd, int64_t* offsets) {
  lines_[0] = {-1, -1, 0, 0, even};
  lines_[1] = {-1, -1, 0, 0, odd};
  offsets_ = offsets;
  const BitImage& image = plan_.source.image;
  const WeightShape& shape = plan_.weight.shape;
  for (int64_t h = 0; h < shape.kernel_h; ++h)
    for (int64_t w = 0; w < shape.kernel_w; ++w)
      for (int64_t c = 0; c < shape.in_channels; c += 8 * kStepBytes)
        *offsets++ = h * image.dilation_h * plan_.line_bytes() + w * image.dilation_w * shape.in_channels + c;
}

template <class Expand>
int64_t ExpandedImage<Expand>::start(int64_t group, int64_t pair, PairRows* rows) {
  const BitImage& image = plan_.source.image;
  const WeightShape& shape = plan_.weight.shape;
  const int64_t pixel_step = image.stride_w * shape.in_channels;
  const int64_t n = pair / plan_.image_pairs, pitch = plan_.line_pitch;
  now_ = &lines_[n % 2];
  const int8_t* from[2];
  int64_t last_line = 0;
  rows->clear();
  for (int64_t tile = 0; tile < 2; ++tile) {
    const int64_t begin = (pair % plan_.image_pairs * 2 + tile) * plan_.tile_rows;
    const bool inside = begin < image.out_height * pitch;  // an image may end with half a pair
    const int64_t offset = begin / pitch * image.stride_h * plan_.line_bytes() + begin % pitch * pixel_step;
    from[tile] = inside ? now_->bytes + offset : from[0];
    for (int64_t row = 0, count; row < plan_.tile_rows && inside; row += count) {
      const int64_t line = (begin + row) / pitch, ow = (begin + row) % pitch;
      count = pitch - ow < plan_.tile_rows - row ? pitch - ow : plan_.tile_rows - row;
      const int64_t left = image.out_width - ow;
      if (line >= image.out_height || left <= 0) continue;
      rows->add(tile * kTileRows + row, (n * image.out_height + line) * image.out_width + ow,
                left < count ? left : count);
      last_line = line;
    }
  }
  rows->tiles = {from[0], from[1], pixel_step};

  const int64_t begin = pair % plan_.image_pairs * 2 * plan_.tile_rows / pitch * image.stride_h;
  const int64_t end = last_line * image.stride_h + (shape.kernel_h - 1) * image.dilation_h + 1;
  if (now_->image != n || now_->group != group || begin < now_->begin || begin > now_->end)
    *now_ = {n, group, begin, begin, now_->bytes};
  next_pixel_ = 0;
  return end <= now_->end ? 0 : (end - now_->end) * ceil_div(image.width, task_pixels());
}

// Some pixels of the next line; the first task of a line is its padding's too.
template <class Expand>
void ExpandedImage<Expand>::run_task() {
  const BitImage& image = plan_.source.image;
  const int64_t channels = plan_.weight.shape.in_channels, line = now_->end - image.padding_h;
  int8_t* out = now_->bytes + now_->end * plan_.line_bytes();
  const bool inside = line >= 0 && line < image.height;
  if (next_pixel_ == 0) {
    fill(out, inside ? image.padding_w : plan_.padded_width());
    if (inside) fill(out + (image.padding_w + image.width) * channels, image.padding_w);
  }
  const int64_t left = image.width - next_pixel_, pixels = left < task_pixels() ? left : task_pixels();
  if (inside)
    Expand::pixels(image.x + ((now_->image * image.height + line) * image.width + next_pixel_) * image.pixel_bytes +
                       now_->group * image.group_bytes,
                   image.pixel_bytes, pixels, channels / 8 / kStepBytes,
                   out + (image.padding_w + next_pixel_) * channels);
  next_pixel_ += pixels;
  if (next_pixel_ < image.width) return;
  next_pixel_ = 0;
  ++now_->end;
}

}  // namespace amx
}  // namespace stompp
