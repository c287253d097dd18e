#include "core/float_conv/conv2d_winograd.h"

#include <algorithm>
#include <cstring>

#include "core/base/scratch.h"
#include "core/base/workers.h"
#include "core/float_conv/winograd_weight.h"
#include "core/product/taps.h"

namespace stompp {
namespace {

using winograd::kPixels;
using winograd::kPoints;
using winograd::kRows;

struct Job {
  const FloatConv& conv;
  const Conv2dShape& shape;
  const WeightShape& weight;
  const winograd::Weight& transformed;
  const Limits& limits;  // of whole panels
  const FloatConvKernels& kernels;
  const int64_t height = shape.out_height(weight), width = shape.out_width(weight);
  const int64_t strips = ceil_div(height, kRows);                // of an image: kRows rows of output each
  const int64_t pixel_floats = shape.stride_w * shape.channels;  // from what a pixel reads to what the next one does
  const int64_t run_floats = weight.kernel_w * shape.channels;
  const int64_t line_stride = round_up((width - 1) * pixel_floats + run_floats, winograd::kLineFloats);

  int64_t tasks() const { return shape.batch * strips; }
};

// One thread's memory and work.
class Worker {
 public:
  explicit Worker(const Job& job)
      : j_(job),
        line_count_(kPoints * job.transformed.line_count()),
        lines_(scratch_of<float>(2 * line_count_ * job.line_stride)),
        runs_(scratch_of<const float*>(job.weight.kernel_h)),
        doubtful_(scratch_of<Pixel>(kRows * job.width)) {}
  bool failed() const { return lines_ == nullptr || runs_ == nullptr || doubtful_ == nullptr; }
  void run(int64_t task);

 private:
  // A pixel of the strip.
  struct Pixel {
    int64_t row, column;
  };

  void read_lines(int64_t image, int64_t first_row);
  void transform_lines();
  void compare(int64_t panel, int64_t first, int64_t pixels);
  void add_up(int64_t panel);
  int64_t offset(Pixel p) const { return p.row * j_.shape.stride_h * j_.line_stride + p.column * j_.pixel_floats; }
  uint32_t* word(Pixel p, int64_t panel) const {
    return words_ + (p.row * j_.width + p.column) * words_for(j_.weight.out_channels) + panel;
  }

  const Job& j_;
  const int64_t line_count_;
  Scratch<float> lines_;  // of input, then transformed
  Scratch<const float*> runs_;
  int64_t rows_ = 0;           // of the strip
  uint32_t* words_ = nullptr;  // that it writes
  winograd::Largest largest_;  // that it reads
  float doubts_[kRows * kPanelOutputs];
  winograd::Bits bits_;
  Scratch<Pixel> doubtful_;
  int64_t doubtful_count_ = 0;
};

void Worker::run(int64_t task) {
  const int64_t image = task / j_.strips, row = task % j_.strips * kRows;
  const int64_t panels = ceil_div(j_.weight.out_channels, kPanelOutputs);
  rows_ = std::min<int64_t>(kRows, j_.height - row);
  words_ = j_.conv.out_words + (image * j_.height + row) * j_.width * words_for(j_.weight.out_channels);
  read_lines(image, row);
  transform_lines();
  for (int64_t panel = 0; panel < panels; ++panel) {
    j_.transformed.doubts(panel, largest_, doubts_);
    for (int64_t first = 0; first < j_.width; first += kPixels)
      compare(panel, first, std::min<int64_t>(kPixels, j_.width - first));
    add_up(panel);
  }
}

// Copies the input between zeros: beside the image, above and below it, and instead of lines that no tap reads.
void Worker::read_lines(int64_t image, int64_t first_row) {
  const Conv2dShape& s = j_.shape;
  const int64_t top = first_row * s.stride_h - s.padding_h;
  int64_t begin = 0, end = 0;
  clip_taps(-s.padding_w, 1, (j_.width - 1) * s.stride_w + j_.weight.kernel_w, s.width, &begin, &end);
  for (int64_t i = 0; i < line_count_; ++i) {
    const int64_t line = top + i;
    float* out = lines_.get() + i * j_.line_stride;
    const bool inside = i < j_.transformed.input_lines() && line >= 0 && line < s.height;
    const int64_t from = inside ? begin * s.channels : 0, to = inside ? end * s.channels : 0;
    const float* x = j_.conv.x + ((image * s.height + line) * s.width - s.padding_w) * s.channels;
    std::fill(out, out + from, 0.0f);
    if (to > from) std::memcpy(out + from, x + from, static_cast<size_t>(to - from) * sizeof(float));
    std::fill(out + to, out + j_.line_stride, 0.0f);
  }
}

void Worker::transform_lines() {
  const int64_t between = j_.transformed.line_count();
  float* out = lines_.get() + line_count_ * j_.line_stride;
  largest_ = {};
  for (int64_t first = 0; first < between; ++first) {
    const float* lines[kPoints];
    for (int64_t i = 0; i < kPoints; ++i) lines[i] = lines_.get() + (i * between + first) * j_.line_stride;
    j_.kernels.winograd.transform(lines, j_.line_stride, out + first * j_.line_stride, between * j_.line_stride,
                                  largest_);
  }
}

// Compares pixels [first, first + pixels) of all rows.
void Worker::compare(int64_t panel, int64_t first, int64_t pixels) {
  const float* lines = lines_.get() + line_count_ * j_.line_stride + first * j_.pixel_floats;
  const winograd::Weight& w = j_.transformed;
  j_.kernels.winograd.compare({lines, w.line_count(), j_.line_stride, j_.run_floats, j_.pixel_floats, pixels,
                               w.panel(panel), w.starts(panel), doubts_},
                              bits_);
  for (int64_t row = 0; row < rows_; ++row) {
    const uint32_t *negative = bits_.negative[row], *doubtful = bits_.doubtful[row];
    uint32_t any = 0;
    for (int64_t i = 0; i < pixels; ++i) any |= doubtful[i];
    for (int64_t i = 0; i < pixels; ++i) *word({row, first + i}, panel) = negative[i];
    for (int64_t i = 0; any != 0 && i < pixels; ++i)
      if (doubtful[i] != 0) doubtful_[doubtful_count_++] = {row, first + i};
  }
}

// Adds the doubtful pixels up as chains, several at once if they lie at the same distance from each other, as any two
// do: one alone would wait for each of its products.
void Worker::add_up(int64_t panel) {
  const FloatTileKernel& kernel = j_.kernels.tiles;
  const int64_t n = panel * kPanelOutputs;
  const auto distance = [&](const Pixel* pixel) { return offset(pixel[1]) - offset(pixel[0]); };
  const auto word_distance = [&](const Pixel* pixel) { return word(pixel[1], panel) - word(pixel[0], panel); };
  for (int64_t count = 0; doubtful_count_ > 0; doubtful_count_ -= count) {
    const Pixel* last = &doubtful_[doubtful_count_ - 1];
    const int64_t most = std::min(kernel.pixels, doubtful_count_);
    FloatTile tile = {runs_.get(),
                      j_.weight.kernel_h,
                      j_.run_floats,
                      most > 1 ? distance(last - 1) : 0,
                      1,
                      j_.conv.weights + n * j_.weight.K(),
                      nullptr,
                      0};
    FloatTileBits out = {j_.limits.low + n, j_.limits.high + n, nullptr, most > 1 ? word_distance(last - 1) : 0};
    for (count = 1; count < most; ++count)
      if (distance(last - count) != tile.step || word_distance(last - count) != out.stride) break;
    tile.pixels = count;
    const Pixel first = last[1 - count];
    for (int64_t h = 0; h < j_.weight.kernel_h; ++h) runs_[h] = lines_.get() + offset(first) + h * j_.line_stride;
    out.words = word(first, panel);
    kernel.compare(tile, out);
  }
}

}  // namespace

Status conv2d_winograd(const FloatConvKernels& kernels, const FloatConv& conv, const Conv2dShape& shape,
                       const WeightShape& weight, const Limits& whole_limits, const Parallel& pool, bool* done) {
  *done = false;
  if (conv.x == nullptr || conv.out != nullptr || !winograd::pays(shape, weight)) return Status::ok();
  const winograd::Weight transformed(conv.weights, shape, weight, whole_limits, pool);
  if (!transformed.usable()) return Status::ok();
  *done = true;
  const Job job = {conv, shape, weight, transformed, whole_limits, kernels};
  return run_tasks<Worker>(job, pool);
}

}  // namespace stompp
