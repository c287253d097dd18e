#include "core/float_conv/conv2d_float.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <vector>

#include "core/base/scratch.h"
#include "core/base/workers.h"
#include "core/float_conv/conv2d_bf16.h"
#include "core/float_conv/conv2d_winograd.h"
#include "core/float_conv/kernels.h"
#include "core/product/taps.h"
#include "core/signs/kernels.h"

namespace stompp {
namespace {

// The prepared input of a task stays in a second cache beside the weights of a panel.
constexpr int64_t kChunkBytes = 256 * 1024;
// Every task may read weights of this size again; larger ones come from further away than the second cache.
constexpr int64_t kNearBytes = 1024 * 1024;

// A task is some output lines of an image with some panels.
struct Grid {
  int64_t line_floats, lines;         // prepared of an input line, and lines of a task
  int64_t line_count, line_chunks;    // output lines of a task, and tasks below each other
  int64_t panel_count, panel_chunks;  // panels of a task, and tasks beside each other

  Grid(const Conv2dShape& s, const WeightShape& w, int threads) {
    const int64_t height = s.out_height(w), width = s.out_width(w), panels = ceil_div(w.out_channels, kPanelOutputs);
    const bool single = w.taps() == 1;  // pixels that no other output reads: those between them are left out
    line_floats = (single ? width : (width - 1) * s.stride_w + (w.kernel_w - 1) * s.dilation_w + 1) * s.channels;
    const int64_t step = single ? 1 : s.stride_h, reach = (w.kernel_h - 1) * s.dilation_h;
    const int64_t fitting = kChunkBytes / (line_floats * static_cast<int64_t>(sizeof(float)));
    const int64_t fits = fitting > reach ? (fitting - reach - 1) / step + 1 : 1;
    line_chunks = ceil_div(height, fits);
    panel_chunks = 1;
    const int64_t tasks = s.batch * line_chunks, wanted = threads == 1 ? 1 : 2 * threads;
    if (tasks > 0 && tasks < wanted) {
      const int64_t more = ceil_div(wanted, tasks);
      const bool near = panels * w.K() * kPanelOutputs * static_cast<int64_t>(sizeof(float)) <= kNearBytes;
      (near ? line_chunks : panel_chunks) *= more;
    }
    line_count = ceil_div(height, std::min(line_chunks, height));
    line_chunks = ceil_div(height, line_count);
    panel_count = ceil_div(panels, std::min(panel_chunks, panels));
    panel_chunks = ceil_div(panels, panel_count);
    lines = (line_count - 1) * step + reach + 1;
  }
};

// What every thread reads. Constants are those of all panels, with zeros, or limits that no sum is outside of, behind
// the last output.
struct Job {
  const FloatConv& conv;
  const Conv2dShape& shape;
  const WeightShape& weight;
  const FloatConvKernels& kernels;
  const PackKernels& signs;
  const Grid& grid;
  const float* first;   // scales or low limits, or null
  const float* second;  // biases or high limits

  int64_t tasks() const { return shape.batch * grid.line_chunks * grid.panel_chunks; }
};

// One thread's memory and work.
class Worker {
 public:
  explicit Worker(const Job& job)
      : j_(job),
        runs_in_line_(job.shape.dilation_w == 1 ? 1 : job.weight.kernel_w),
        run_floats_(job.weight.kernel_w / runs_in_line_ * job.shape.channels),
        lines_(scratch_of<float>(job.grid.lines * job.grid.line_floats)),
        runs_(scratch_of<const float*>(job.weight.kernel_h * runs_in_line_)) {}
  bool failed() const { return lines_ == nullptr || runs_ == nullptr; }
  void run(int64_t task);

 private:
  void prepare_lines();
  void prepare_line(int64_t line, float* out) const;
  void read_pixels(int64_t line, int64_t column, int64_t step, int64_t count, float* out) const;
  void run_line(int64_t oh, int64_t pixels, int64_t panel);
  void run_tile(const FloatTile& tile, int64_t pixel, int64_t panel) const;

  const Job& j_;
  const int64_t runs_in_line_, run_floats_;
  Scratch<float> lines_;
  Scratch<const float*> runs_;
  int64_t image_ = 0, first_line_ = 0, line_count_ = 0;  // of output
  const float* ahead_ = nullptr;  // what is left of the next panel, which the tiles of this one fetch in equal shares
  int64_t ahead_left_ = 0, ahead_share_ = 0;
};

void Worker::run(int64_t task) {
  const Grid& grid = j_.grid;
  const int64_t height = j_.shape.out_height(j_.weight), width = j_.shape.out_width(j_.weight);
  const int64_t panels = ceil_div(j_.weight.out_channels, kPanelOutputs), lines = task / grid.panel_chunks;
  image_ = lines / grid.line_chunks;
  first_line_ = lines % grid.line_chunks * grid.line_count;
  line_count_ = std::min(grid.line_count, height - first_line_);
  prepare_lines();
  const int64_t first_panel = task % grid.panel_chunks * grid.panel_count;
  const int64_t end = std::min(first_panel + grid.panel_count, panels);
  const int64_t tiles = line_count_ * ceil_div(width, j_.kernels.tiles.pixels);
  const int64_t panel_floats = j_.weight.K() * kPanelOutputs;
  ahead_share_ = ceil_div(panel_floats, tiles);
  for (int64_t panel = first_panel; panel < end; ++panel) {
    ahead_ = j_.conv.weights + (panel + 1) * panel_floats;
    ahead_left_ = panel + 1 < end ? panel_floats : 0;
    if (j_.weight.taps() == 1) {  // the pixels of all lines are the rows of one matrix
      run_line(first_line_, line_count_ * width, panel);
      continue;
    }
    for (int64_t i = 0; i < line_count_; ++i) run_line(first_line_ + i, width, panel);
  }
}

void Worker::prepare_lines() {
  const Conv2dShape& s = j_.shape;
  const bool single = j_.weight.taps() == 1;
  const int64_t reach = (j_.weight.kernel_h - 1) * s.dilation_h;
  const int64_t lines = single ? line_count_ : (line_count_ - 1) * s.stride_h + reach + 1;
  const int64_t top = first_line_ * s.stride_h - s.padding_h, step = single ? s.stride_h : 1;
  for (int64_t i = 0; i < lines; ++i) prepare_line(top + i * step, lines_.get() + i * j_.grid.line_floats);
}

// Copies a line of input between zeros, or those of its pixels that single taps read.
void Worker::prepare_line(int64_t line, float* out) const {
  const Conv2dShape& s = j_.shape;
  const int64_t pixels = j_.grid.line_floats / s.channels, step = j_.weight.taps() == 1 ? s.stride_w : 1;
  int64_t begin = 0, end = 0;
  if (line >= 0 && line < s.height) clip_taps(-s.padding_w, step, pixels, s.width, &begin, &end);
  const auto clear = [&](int64_t from, int64_t to) {
    std::memset(out + from * s.channels, 0, static_cast<size_t>((to - from) * s.channels) * sizeof(float));
  };
  clear(0, begin);
  if (end > begin) read_pixels(line, begin * step - s.padding_w, step, end - begin, out + begin * s.channels);
  clear(end, pixels);
}

void Worker::read_pixels(int64_t line, int64_t column, int64_t step, int64_t count, float* out) const {
  const Conv2dShape& s = j_.shape;
  const int64_t first = (image_ * s.height + line) * s.width + column;
  if (j_.conv.x != nullptr && step == 1) {
    std::memcpy(out, j_.conv.x + first * s.channels, static_cast<size_t>(count * s.channels) * sizeof(float));
    return;
  }
  const int64_t words = words_for(s.channels);
  for (int64_t i = 0; i < count; ++i, out += s.channels) {
    const int64_t pixel = first + i * step;
    if (j_.conv.x != nullptr)
      std::memcpy(out, j_.conv.x + pixel * s.channels, static_cast<size_t>(s.channels) * sizeof(float));
    else
      j_.signs.unpack_row(j_.conv.words + pixel * words, FloatType::kFloat32, s.channels, out);
  }
}

// Computes output pixels beside each other, from the first of line `oh` on.
void Worker::run_line(int64_t oh, int64_t pixels, int64_t panel) {
  const Conv2dShape& s = j_.shape;
  const WeightShape& w = j_.weight;
  const bool single = w.taps() == 1;
  const int64_t top = oh * s.stride_h - s.padding_h, step = (single ? 1 : s.stride_w) * s.channels;
  int64_t begin = 0, end = 1;
  if (!single) clip_taps(top, s.dilation_h, w.kernel_h, s.height, &begin, &end);
  const float* line = lines_.get() + (single ? 0 : (oh - first_line_) * s.stride_h * j_.grid.line_floats);
  const float* weights = j_.conv.weights + (panel * w.K() + begin * w.kernel_w * s.channels) * kPanelOutputs;
  FloatTile tile = {runs_.get(), (end - begin) * runs_in_line_, run_floats_, step, 0, weights, nullptr, 0};

  const float** run = runs_.get();
  for (int64_t h = begin; h < end; ++h)
    for (int64_t i = 0; i < runs_in_line_; ++i)
      *run++ = line + h * s.dilation_h * j_.grid.line_floats + i * s.dilation_w * s.channels;
  // Tiles have nearly the same size: one of few pixels takes as many steps as a full one.
  const int64_t tiles = ceil_div(pixels, j_.kernels.tiles.pixels);
  const int64_t out_pixel = (image_ * s.out_height(w) + oh) * s.out_width(w);
  for (int64_t t = 0, pixel = 0; t < tiles; ++t, pixel += tile.pixels) {
    tile.pixels = pixels * (t + 1) / tiles - pixel;
    tile.ahead = ahead_;
    tile.ahead_floats = std::min(ahead_share_, ahead_left_);
    ahead_ += tile.ahead_floats;
    ahead_left_ -= tile.ahead_floats;
    run_tile(tile, out_pixel + pixel, panel);
    for (int64_t i = 0; i < tile.run_count; ++i) runs_[i] += tile.pixels * step;
  }
}

void Worker::run_tile(const FloatTile& tile, int64_t pixel, int64_t panel) const {
  const FloatTileKernel& kernel = j_.kernels.tiles;
  const int64_t n = panel * kPanelOutputs, outputs = j_.weight.out_channels;
  const float* first = j_.first == nullptr ? nullptr : j_.first + n;
  const float* second = j_.first == nullptr ? nullptr : j_.second + n;
  if (j_.conv.out == nullptr) {
    const int64_t stride = words_for(outputs);
    kernel.compare(tile, {first, second, j_.conv.out_words + pixel * stride + panel, stride});
    return;
  }
  float* out = j_.conv.out + pixel * outputs + n;
  if (outputs - n >= kPanelOutputs) {
    kernel.multiply(tile, {first, second, j_.conv.fused, out, outputs});
    return;
  }
  float whole[kMostTilePixels * kPanelOutputs];
  kernel.multiply(tile, {first, second, j_.conv.fused, whole, kPanelOutputs});
  for (int64_t p = 0; p < tile.pixels; ++p)
    std::memcpy(out + p * outputs, whole + p * kPanelOutputs, static_cast<size_t>(outputs - n) * sizeof(float));
}

// Returns the values of each output, with `rest` for those that the last panel has beyond them; null stays null.
const float* whole_panels(const float* values, int64_t outputs, float rest, std::vector<float>* storage) {
  if (values == nullptr || outputs % kPanelOutputs == 0) return values;
  storage->assign(static_cast<size_t>(round_up(outputs, kPanelOutputs)), rest);
  std::copy(values, values + outputs, storage->begin());
  return storage->data();
}

}  // namespace

Status conv2d_float(const FloatConv& conv, const Conv2dShape& shape, const WeightShape& weight, const Parallel& pool) {
  const FloatConvKernels* active = active_float_conv_kernels();
  const PackKernels* signs = active_pack_kernels();
  if (active == nullptr || signs == nullptr) return no_implementation();
  FloatConvKernels kernels = *active;
  if (conv.unfused_sums && kernels.unfused.multiply != nullptr) kernels.tiles = kernels.unfused;
  if (weight.groups != 1) return Status::error("conv2d_float takes weights of one group");
  const Status status = check_conv2d(shape, weight);
  if (!status.is_ok()) return status;
  const Grid grid(shape, weight, pool.threads);
  const bool bits = conv.out == nullptr;
  const float infinity = std::numeric_limits<float>::infinity();
  std::vector<float> first, second;
  const float* constants[] = {
      whole_panels(bits ? conv.limits.low : conv.scale, weight.out_channels, bits ? -infinity : 0.0f, &first),
      whole_panels(bits ? conv.limits.high : conv.bias, weight.out_channels, bits ? infinity : 0.0f, &second)};
  if (conv.bf16_weights != nullptr) {
    if (kernels.bf16.multiply != nullptr) return conv2d_bf16(kernels, conv, shape, weight, constants, pool);
    const Scratch<float> joined =
        scratch_of<float>(ceil_div(weight.out_channels, kPanelOutputs) * weight.K() * kPanelOutputs);
    if (joined == nullptr) return Status::error("out of memory");
    join_weights(conv, weight, joined.get());
    FloatConv plain = conv;
    plain.weights = joined.get();
    plain.bf16_weights = nullptr;
    return conv2d_float(plain, shape, weight, pool);
  }
  if (bits) {
    bool done = false;
    const Status by_winograd = conv2d_winograd(kernels, conv, shape, weight, {constants[0], constants[1]}, pool, &done);
    if (done) return by_winograd;
  }
  const Job job = {conv, shape, weight, kernels, *signs, grid, constants[0], constants[1]};
  return run_tasks<Worker>(job, pool);
}

}  // namespace stompp
