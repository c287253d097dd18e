#include "core/float_conv/conv2d_bf16.h"

#include <algorithm>
#include <cstring>

#include "core/base/float_types.h"
#include "core/base/scratch.h"
#include "core/base/workers.h"
#include "core/product/taps.h"

namespace stompp {
namespace {

// Rows of a task, beside a panel's weights, stay in a second cache.
constexpr int64_t kRowBytes = 512 * 1024;
// Weights of this size stay in the second cache beside the input, and partly in the first.
constexpr int64_t kNearBytes = 128 * 1024;

// A task is a range of output pixels, of all images in a row, with some panels.
struct Job {
  Job(const FloatConvKernels& kernels, const FloatConv& conv, const Conv2dShape& shape, const WeightShape& weight,
      const float* const (&constants)[2], int threads)
      : kernels(kernels.bf16), conv(conv), shape(shape), weight(weight), first(constants[0]), second(constants[1]) {
    tap_elements = conv.x == nullptr ? words_for(shape.channels) * kWordBits : shape.channels;
    steps = ceil_div(weight.K(), kBf16Step);
    // More than a whole number of steps: else rows of a power of two would share few lines of the first cache.
    row_stride = steps * kBf16Step + kBf16Step;
    pixels = shape.batch * shape.out_height(weight) * shape.out_width(weight);
    panels = ceil_div(weight.out_channels, kPanelOutputs);
    const int64_t blocks = ceil_div(pixels, kBf16BlockRows);
    const int64_t block_bytes = kBf16BlockRows * row_stride * static_cast<int64_t>(sizeof(uint16_t));
    int64_t ranges = ceil_div(blocks, std::max<int64_t>(1, kRowBytes / block_bytes)), panel_ranges = 1;
    if (ranges < threads) ranges = std::min<int64_t>(blocks, threads);
    if (ranges < threads) panel_ranges = std::min<int64_t>(panels, ceil_div(threads, ranges));
    const int64_t weight_bytes = panels * panel_weights() * static_cast<int64_t>(sizeof(uint16_t));
    weights_are_near = weight_bytes <= kNearBytes;
    range_blocks = ceil_div(blocks, ranges);
    block_ranges = ceil_div(blocks, range_blocks);
    range_panels = ceil_div(panels, panel_ranges);
  }
  int64_t tasks() const { return block_ranges * ceil_div(panels, range_panels); }
  int64_t panel_weights() const { return steps * conv.bf16_parts * kBf16PartWeights; }

  const Bf16Kernels& kernels;
  const FloatConv& conv;
  const Conv2dShape& shape;
  const WeightShape& weight;
  const float *first, *second;  // scales or low limits, biases or high limits, of whole panels
  int64_t tap_elements;         // from an input pixel to the next one
  int64_t steps, row_stride;
  int64_t pixels, panels;
  int64_t range_blocks, block_ranges, range_panels;
  bool weights_are_near;
};

// One thread's memory and work.
class Worker {
 public:
  explicit Worker(const Job& job);
  ~Worker() {
    if (begun_ && j_.kernels.end != nullptr) j_.kernels.end();
  }
  bool failed() const { return !begun_; }
  void run(int64_t task);

 private:
  void read_pixels(int64_t first, int64_t count);
  void read_single_taps(int64_t image, int64_t oh, int64_t ow, int64_t count, int64_t row);
  void read_taps(int64_t image, int64_t oh, int64_t ow, int64_t count, int64_t row);
  const uint16_t* line(int64_t image, int64_t h);
  void convert(int64_t pixel, int64_t count, uint16_t* out) const;
  void multiply(int64_t block, int64_t rows, int64_t panel);
  int64_t row_elements() const { return (j_.range_blocks * kBf16BlockRows + 1) * j_.row_stride; }
  int64_t all_line_elements() const { return (ring_lines_ + 1) * line_elements_; }
  uint16_t* row(int64_t row) const { return rows_.get() + row * j_.row_stride; }

  const Job& j_;
  const bool single_;
  // Lines of input between zeros, and which they are. The one behind them is a line of zeros.
  const int64_t ring_lines_, line_elements_;
  Scratch<uint16_t> rows_, lines_;
  Scratch<float> sums_;
  Scratch<int64_t> line_numbers_;
  Scratch<const uint16_t*> runs_;
  bool begun_ = false;
  int64_t first_pixel_ = 0;
};

Worker::Worker(const Job& job)
    : j_(job),
      single_(job.weight.taps() == 1),
      ring_lines_(single_ ? 0 : (job.weight.kernel_h - 1) * job.shape.dilation_h + 1),
      line_elements_(round_up((job.shape.width + 2 * job.shape.padding_w) * job.tap_elements, kBf16Step) +
                     2 * kBf16Step),
      rows_(scratch_of<uint16_t>(row_elements())),
      lines_(scratch_of<uint16_t>(all_line_elements())),
      sums_(scratch_of<float>(kBf16BlockRows * kPanelOutputs)),
      line_numbers_(scratch_of<int64_t>(ring_lines_ + 1)),
      runs_(scratch_of<const uint16_t*>(job.weight.taps())) {
  if (rows_ == nullptr || lines_ == nullptr || sums_ == nullptr || line_numbers_ == nullptr || runs_ == nullptr) return;
  std::memset(rows_.get(), 0, static_cast<size_t>(row_elements()) * sizeof(uint16_t));
  std::memset(lines_.get(), 0, static_cast<size_t>(all_line_elements()) * sizeof(uint16_t));
  std::fill(line_numbers_.get(), line_numbers_.get() + ring_lines_ + 1, -1);
  if (j_.kernels.begin != nullptr) j_.kernels.begin();
  begun_ = true;
}

void Worker::run(int64_t task) {
  const int64_t range = task % j_.block_ranges;
  const int64_t first_panel = task / j_.block_ranges * j_.range_panels;
  const int64_t end_panel = std::min(first_panel + j_.range_panels, j_.panels);
  const int64_t first_pixel = range * j_.range_blocks * kBf16BlockRows;
  const int64_t end_pixel = std::min(first_pixel + j_.range_blocks * kBf16BlockRows, j_.pixels);
  // Weights that are near are read again for each block, whose rows are then nearer still. The others are read once
  // from afar, and the rows of all blocks for each panel.
  const int64_t pixels = j_.weights_are_near ? kBf16BlockRows : end_pixel - first_pixel;
  for (first_pixel_ = first_pixel; first_pixel_ < end_pixel; first_pixel_ += pixels) {
    const int64_t rows = std::min(pixels, end_pixel - first_pixel_);
    read_pixels(first_pixel_, rows);
    for (int64_t panel = first_panel; panel < end_panel; ++panel)
      for (int64_t done = 0; done < rows; done += kBf16BlockRows)
        multiply(done, std::min(kBf16BlockRows, rows - done), panel);
  }
}

// Brings the inputs of output pixels into rows, those of a line together.
void Worker::read_pixels(int64_t first, int64_t count) {
  const int64_t width = j_.shape.out_width(j_.weight), height = j_.shape.out_height(j_.weight);
  for (int64_t done = 0; done < count;) {
    const int64_t pixel = first + done, oh = pixel / width % height, ow = pixel % width;
    const int64_t beside = std::min(width - ow, count - done);
    if (single_)
      read_single_taps(pixel / width / height, oh, ow, beside, done);
    else
      read_taps(pixel / width / height, oh, ow, beside, done);
    done += beside;
  }
}

void Worker::convert(int64_t pixel, int64_t count, uint16_t* out) const {
  const int64_t channels = j_.shape.channels, words = words_for(channels);
  if (j_.conv.x != nullptr)
    j_.kernels.round(j_.conv.x + pixel * channels, count * channels, out);
  else
    j_.kernels.expand(j_.conv.words + pixel * words, count * words, out);
}

void Worker::read_single_taps(int64_t image, int64_t oh, int64_t ow, int64_t count, int64_t first_row) {
  const Conv2dShape& s = j_.shape;
  const int64_t h = oh * s.stride_h - s.padding_h;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t w = (ow + i) * s.stride_w - s.padding_w;
    uint16_t* out = row(first_row + i);
    if (h >= 0 && h < s.height && w >= 0 && w < s.width)
      convert((image * s.height + h) * s.width + w, 1, out);
    else
      std::memset(out, 0, static_cast<size_t>(j_.steps * kBf16Step) * sizeof(uint16_t));
  }
}

// Returns a line of input between its padding.
const uint16_t* Worker::line(int64_t image, int64_t h) {
  const Conv2dShape& s = j_.shape;
  const bool inside = h >= 0 && h < s.height;
  const int64_t number = image * s.height + h, slot = inside ? number % ring_lines_ : ring_lines_;
  uint16_t* out = lines_.get() + slot * line_elements_;
  if (inside && line_numbers_[slot] != number) {
    convert(number * s.width, s.width, out + s.padding_w * j_.tap_elements);
    line_numbers_[slot] = number;
  }
  return out;
}

void Worker::read_taps(int64_t image, int64_t oh, int64_t ow, int64_t count, int64_t first_row) {
  const Conv2dShape& s = j_.shape;
  const WeightShape& w = j_.weight;
  const bool whole_lines = s.dilation_w == 1 && j_.tap_elements == s.channels;
  const int64_t line_runs = whole_lines ? 1 : w.kernel_w, run_elements = w.kernel_w / line_runs * s.channels;
  const uint16_t** run = runs_.get();
  for (int64_t kh = 0; kh < w.kernel_h; ++kh) {
    const uint16_t* from = line(image, oh * s.stride_h - s.padding_h + kh * s.dilation_h);
    for (int64_t i = 0; i < line_runs; ++i) *run++ = from + (ow * s.stride_w + i * s.dilation_w) * j_.tap_elements;
  }
  j_.kernels.gather({runs_.get(), w.kernel_h * line_runs, run_elements, s.stride_w * j_.tap_elements, count,
                     row(first_row), j_.row_stride});
}

// Writes the results of some rows with one panel; straight from the tiles where nothing follows the sums.
void Worker::multiply(int64_t first_row, int64_t rows, int64_t panel) {
  const FloatConv& conv = j_.conv;
  const int64_t n = panel * kPanelOutputs, outputs = j_.weight.out_channels, pixel = first_pixel_ + first_row;
  const int64_t count = std::min(kPanelOutputs, outputs - n);
  float* out = conv.out == nullptr ? nullptr : conv.out + pixel * outputs + n;
  const bool straight = out != nullptr && conv.scale == nullptr && count == kPanelOutputs && rows == kBf16BlockRows;
  j_.kernels.multiply({row(first_row), j_.row_stride, rows, j_.steps, conv.bf16_parts,
                       conv.bf16_weights + panel * j_.panel_weights(), straight ? out : sums_.get(),
                       straight ? outputs : kPanelOutputs});
  if (straight) return;
  const float* first = j_.first == nullptr ? nullptr : j_.first + n;
  const float* second = j_.first == nullptr ? nullptr : j_.second + n;
  if (out == nullptr) {
    const int64_t stride = words_for(outputs);
    j_.kernels.compare(sums_.get(), rows, {first, second, conv.out_words + pixel * stride + panel, stride});
  } else if (count == kPanelOutputs) {
    j_.kernels.finish(sums_.get(), rows, {first, second, conv.fused, out, outputs});
  } else {
    j_.kernels.finish(sums_.get(), rows, {first, second, conv.fused, sums_.get(), kPanelOutputs});
    for (int64_t r = 0; r < rows; ++r)
      std::memcpy(out + r * outputs, sums_.get() + r * kPanelOutputs, static_cast<size_t>(count) * sizeof(float));
  }
}

}  // namespace

Status conv2d_bf16(const FloatConvKernels& kernels, const FloatConv& conv, const Conv2dShape& shape,
                   const WeightShape& weight, const float* const (&constants)[2], const Parallel& pool) {
  const Job job(kernels, conv, shape, weight, constants, pool.threads);
  return job.pixels == 0 ? Status::ok() : run_tasks<Worker>(job, pool);
}

void join_weights(const FloatConv& conv, const WeightShape& weight, float* out) {
  const int64_t K = weight.K(), steps = ceil_div(K, kBf16Step);
  for (int64_t panel = 0; panel < ceil_div(weight.out_channels, kPanelOutputs); ++panel)
    for (int64_t k = 0; k < K; ++k, out += kPanelOutputs) {
      const int64_t step = panel * steps + k / kBf16Step, pair = k % kBf16Step / 2;
      const uint16_t* from = conv.bf16_weights + step * conv.bf16_parts * kBf16PartWeights;
      for (int64_t n = 0; n < kPanelOutputs; ++n) {
        const int64_t at = (pair * kPanelOutputs + n) * 2 + k % 2;
        const float rest = conv.bf16_parts == 1 ? 0.0f : bfloat16_to_float(from[kBf16PartWeights + at]);
        out[n] = bfloat16_to_float(from[at]) + rest;
      }
    }
}

}  // namespace stompp
