#include "core/binary_weight/binary_weight.h"

#include <cstring>
#include <memory>

#include "core/base/scratch.h"
#include "core/base/workers.h"
#include "core/binary_weight/grid.h"
#include "core/binary_weight/kernels.h"
#include "core/product/blocks.h"
#include "core/product/taps.h"

namespace stompp {
namespace {

// What every thread reads.
struct FloatConv {
  const FloatProduct& product;
  const Conv2dShape& shape;
  const PackedWeight& weight;
  const SignedSumKernels& kernels;
  const ChannelBlocks& blocks;
  const FloatConvGrid& grid;
  const float* channel_weights;  // of small groups, else null; see ChannelSumBlock::weights
  bool in_place;                 // no line is prepared: floats are read, and outputs written, where they lie

  int64_t tasks() const { return shape.batch * blocks.count * grid.strips * grid.line_chunks * grid.panel_chunks; }
};

// One thread's memory and work.
class Worker {
 public:
  explicit Worker(const FloatConv& conv);
  bool failed() const { return bytes_ == nullptr; }
  void run(int64_t task);

 private:
  void begin_strip(int64_t first, int64_t end);
  void prepare_line(int64_t line);
  void run_line(int64_t oh, int64_t first, int64_t end);
  void run_pixels(int64_t oh, int64_t ow, int64_t pixels);
  void run_channels(int64_t oh, int64_t first, int64_t end);
  const float* pixel_at(int64_t line, int64_t column) const;
  int64_t pixel_step() const { return c_.in_place ? c_.shape.channels : c_.grid.pixel_floats; }
  void point_at_pixels(int64_t line, int64_t column, int64_t pixels, const float** rows) const;
  int64_t first_output(int64_t oh, int64_t ow) const;
  void write(int64_t oh, int64_t ow, int64_t pixels) const;

  const FloatConv& c_;
  const int64_t max_columns_, sum_stride_;
  Scratch<uint8_t> bytes_;
  float *lines_, *zeros_, *sums_, *wide_;
  const float** rows_;  // [taps][rows]
  int32_t* taps_;       // those that are inside, of this line
  int64_t* line_at_;    // [kept_lines], which line is prepared there
  uint8_t* needed_;     // [max_columns], whether a tap of the strip reads the column
  int64_t image_ = 0, block_ = 0, panel_ = 0, panels_ = 0;
  int64_t first_column_ = 0, columns_ = 0;
};

constexpr int64_t kLine = kScratchAlignment;

Worker::Worker(const FloatConv& conv)
    : c_(conv),
      max_columns_(std::min((conv.grid.strip_width - 1) * conv.shape.stride_w +
                                (conv.weight.shape.kernel_w - 1) * conv.shape.dilation_w + 1,
                            conv.shape.width)),
      sum_stride_(conv.grid.panel_count * kPanelOutputs) {
  const int64_t taps = c_.weight.shape.taps();
  int64_t total = 0;
  const auto part = [&](int64_t count, size_t size) {
    const int64_t at = total;
    total += round_up(count * static_cast<int64_t>(size), kLine);
    return at;
  };
  const int64_t line_floats = c_.in_place ? 0 : max_columns_ * c_.grid.pixel_floats;
  const int64_t lines = part(c_.grid.kept_lines * line_floats, sizeof(float));
  const int64_t zeros = part(c_.grid.pixel_floats, sizeof(float));
  const int64_t sums = part(c_.grid.rows * sum_stride_, sizeof(float));
  const int64_t wide = part(c_.blocks.inputs, sizeof(float));
  const int64_t rows = part(taps * c_.grid.rows, sizeof(*rows_)), valid = part(taps, sizeof(*taps_));
  const int64_t line_at = part(c_.grid.kept_lines, sizeof(*line_at_)), needed = part(max_columns_, 1);
  bytes_ = scratch_of<uint8_t>(total);
  if (bytes_ == nullptr) return;
  uint8_t* start = bytes_.get();
  lines_ = reinterpret_cast<float*>(start + lines);
  zeros_ = reinterpret_cast<float*>(start + zeros);
  sums_ = reinterpret_cast<float*>(start + sums);
  wide_ = reinterpret_cast<float*>(start + wide);
  rows_ = reinterpret_cast<const float**>(start + rows);
  taps_ = reinterpret_cast<int32_t*>(start + valid);
  line_at_ = reinterpret_cast<int64_t*>(start + line_at);
  needed_ = start + needed;
  std::memset(zeros_, 0, static_cast<size_t>(c_.grid.pixel_floats) * sizeof(float));
}

void Worker::run(int64_t task) {
  const FloatConvGrid& grid = c_.grid;
  const WeightShape& w = c_.weight.shape;
  const int64_t lines = task % grid.line_chunks * grid.line_count, strip = task / grid.line_chunks;
  const int64_t panels = strip / grid.strips, block = panels / grid.panel_chunks;
  const int64_t first = strip % grid.strips * grid.strip_width;
  const int64_t end = std::min(first + grid.strip_width, c_.shape.out_width(w));
  panel_ = panels % grid.panel_chunks * grid.panel_count;
  panels_ = std::min(grid.panel_count, c_.blocks.panels - panel_);
  block_ = block % c_.blocks.count;
  image_ = block / c_.blocks.count;
  begin_strip(first, end);

  const int64_t last_line = std::min(lines + grid.line_count, c_.shape.out_height(w));
  for (int64_t oh = lines; oh < last_line; ++oh)
    w.small_groups() ? run_channels(oh, first, end) : run_line(oh, first, end);
}

void Worker::begin_strip(int64_t first, int64_t end) {
  const Conv2dShape& s = c_.shape;
  const int64_t kernel_w = c_.weight.shape.kernel_w, left = first * s.stride_w - s.padding_w;
  const int64_t right = (end - 1) * s.stride_w - s.padding_w + (kernel_w - 1) * s.dilation_w + 1;
  first_column_ = std::min(std::max<int64_t>(left, 0), s.width);
  columns_ = std::max<int64_t>(std::min(right, s.width) - first_column_, 0);
  std::memset(needed_, 0, static_cast<size_t>(columns_));
  for (int64_t ow = first; ow < end; ++ow) {
    const int64_t start = ow * s.stride_w - s.padding_w;
    int64_t w, w_end;
    clip_taps(start, s.dilation_w, kernel_w, s.width, &w, &w_end);
    for (; w < w_end; ++w) needed_[start + w * s.dilation_w - first_column_] = 1;
  }
  for (int64_t i = 0; i < c_.grid.kept_lines; ++i) line_at_[i] = -1;
}

void Worker::prepare_line(int64_t line) {
  int64_t& at = line_at_[line % c_.grid.kept_lines];
  if (at == line || c_.in_place) return;
  at = line;
  const Conv2dShape& s = c_.shape;
  const FloatType type = c_.product.type;
  const int64_t first = ((image_ * s.height + line) * s.width + first_column_) * s.channels + block_ * c_.blocks.inputs;
  for (int64_t i = 0; i < columns_; ++i) {
    if (needed_[i] == 0) continue;
    const char* x = static_cast<const char*>(c_.product.x) + (first + i * s.channels) * size_of(type);
    if (type != FloatType::kFloat32) c_.kernels.widen(x, type, c_.blocks.inputs, wide_);
    const float* from = type == FloatType::kFloat32 ? reinterpret_cast<const float*>(x) : wide_;
    float* to = lines_ + (line % c_.grid.kept_lines * columns_ + i) * c_.grid.pixel_floats;
    if (c_.weight.shape.small_groups())
      c_.kernels.channels.prepare(from, c_.blocks.inputs, c_.blocks.turns, to);
    else
      c_.kernels.sums.prepare(from, c_.blocks.inputs, to);
  }
}

// What is multiplied of a pixel that is inside.
const float* Worker::pixel_at(int64_t line, int64_t column) const {
  const Conv2dShape& s = c_.shape;
  if (c_.in_place)
    return static_cast<const float*>(c_.product.x) + ((image_ * s.height + line) * s.width + column) * s.channels;
  return lines_ + (line % c_.grid.kept_lines * columns_ + column - first_column_) * c_.grid.pixel_floats;
}

void Worker::run_line(int64_t oh, int64_t first, int64_t end) {
  // Blocks of pixels have nearly the same size: one of few pixels costs as much as a full one.
  const int64_t pixel_blocks = ceil_div(end - first, c_.grid.rows);
  for (int64_t i = 0; i < pixel_blocks; ++i) {
    const int64_t from = first + (end - first) * i / pixel_blocks;
    run_pixels(oh, from, first + (end - first) * (i + 1) / pixel_blocks - from);
  }
}

// Points at the prepared pixels that output pixels beside each other read at a tap; the first one reads `column`.
void Worker::point_at_pixels(int64_t line, int64_t column, int64_t pixels, const float** rows) const {
  const int64_t step = c_.shape.stride_w, width = c_.shape.width, floats = pixel_step();
  const float* kept = pixel_at(line, first_column_);  // once: where a kept line lies takes a division
  int64_t at = (column - first_column_) * floats;
  for (int64_t i = 0; i < pixels; ++i, column += step, at += step * floats)
    rows[i] = column >= 0 && column < width ? kept + at : zeros_;
}

void Worker::run_pixels(int64_t oh, int64_t ow, int64_t pixels) {
  const Conv2dShape& s = c_.shape;
  const WeightShape& w = c_.weight.shape;
  const int64_t top = oh * s.stride_h - s.padding_h;
  ValidTaps valid;
  clip_taps(top, s.dilation_h, w.kernel_h, s.height, &valid.h_begin, &valid.h_end);
  int64_t tap_count = 0;
  for (int64_t h = valid.h_begin; h < valid.h_end; ++h) {
    const int64_t line = top + h * s.dilation_h;
    prepare_line(line);
    for (int64_t kw = 0; kw < w.kernel_w; ++kw) {
      point_at_pixels(line, ow * s.stride_w - s.padding_w + kw * s.dilation_w, pixels, rows_ + tap_count * pixels);
      taps_[tap_count++] = static_cast<int32_t>(h * w.kernel_w + kw);
    }
  }
  const uint32_t* panels = reinterpret_cast<const uint32_t*>(c_.weight.panels) +
                           (block_ * c_.blocks.panels + panel_) * words_for(w.in_channels) * w.taps() * kPanelOutputs;
  c_.kernels.sums.add_up(
      {rows_, pixels, taps_, tap_count, c_.blocks.inputs, panels, w.taps(), panels_, sums_, sum_stride_});
  write(oh, ow, pixels);
}

// Pixels of a line of small groups; those that miss the same taps are added up together.
void Worker::run_channels(int64_t oh, int64_t first, int64_t end) {
  const Conv2dShape& s = c_.shape;
  const WeightShape& w = c_.weight.shape;
  const int64_t top = oh * s.stride_h - s.padding_h;
  ValidTaps valid;
  clip_taps(top, s.dilation_h, w.kernel_h, s.height, &valid.h_begin, &valid.h_end);
  for (int64_t ow = first, pixels; ow < end; ow += pixels) {
    const int64_t left = ow * s.stride_w - s.padding_w,
                  most = c_.in_place ? end - ow : std::min(end - ow, c_.grid.rows);
    clip_taps(left, s.dilation_w, w.kernel_w, s.width, &valid.w_begin, &valid.w_end);
    const bool whole = valid.w_end - valid.w_begin == w.kernel_w;
    pixels = whole ? whole_windows(left, s.stride_w, s.dilation_w, w.kernel_w, s.width, most) : 1;
    int64_t tap_count = 0;
    for (int64_t h = valid.h_begin; h < valid.h_end; ++h) {
      const int64_t line = top + h * s.dilation_h;
      prepare_line(line);
      for (int64_t kw = valid.w_begin; kw < valid.w_end; ++kw) {
        rows_[tap_count] = pixel_at(line, left + kw * s.dilation_w);
        taps_[tap_count++] = static_cast<int32_t>(h * w.kernel_w + kw);
      }
    }
    ChannelSumBlock block = {rows_,
                             taps_,
                             tap_count,
                             pixels,
                             s.stride_w * pixel_step(),
                             c_.channel_weights,
                             w.taps(),
                             c_.blocks.turns,
                             panels_ * kPanelOutputs,
                             nullptr,
                             nullptr,
                             sums_,
                             sum_stride_};
    if (c_.in_place) {
      block.channels = block.stride = s.channels;
      block.scale = c_.product.scale;
      block.bias = c_.product.bias;
      block.out = static_cast<float*>(c_.product.out) + first_output(oh, ow);
    }
    c_.kernels.channels.add_up(block);
    if (!c_.in_place) write(oh, ow, pixels);
  }
}

// Where the channels of an output pixel begin.
int64_t Worker::first_output(int64_t oh, int64_t ow) const {
  const WeightShape& w = c_.weight.shape;
  return ((image_ * c_.shape.out_height(w) + oh) * c_.shape.out_width(w) + ow) * w.out_channels;
}

void Worker::write(int64_t oh, int64_t ow, int64_t pixels) const {
  const int64_t first = panel_ * kPanelOutputs, channel = block_ * c_.blocks.outputs + first;
  const int64_t count = std::min(panels_ * kPanelOutputs, c_.blocks.outputs - first);
  const float* bias = c_.product.bias == nullptr ? nullptr : c_.product.bias + channel;
  const int64_t output = first_output(oh, ow) + channel;
  for (int64_t r = 0; r < pixels; ++r) {
    const int64_t at = (output + r * c_.weight.shape.out_channels) * size_of(c_.product.type);
    c_.kernels.scale_sums(sums_ + r * sum_stride_, c_.product.scale + channel, bias, count, c_.product.type,
                          static_cast<char*>(c_.product.out) + at);
  }
}

// Words of small groups' signs as floats. Compilers make vectors of this: the baseline has no shifts of each lane's
// own.
void expand_signs(const uint32_t* words, int64_t count, float* out) {
  uint32_t bits[kPanelOutputs], floats[kPanelOutputs];
  for (int64_t c = 0; c < kPanelOutputs; ++c) bits[c] = uint32_t{1} << c;
  for (int64_t i = 0; i < count; ++i, out += kPanelOutputs) {
    for (int64_t c = 0; c < kPanelOutputs; ++c)
      floats[c] = 0x3f800000u | ((words[i] & bits[c]) == bits[c] ? 0x80000000u : 0u);
    std::memcpy(out, floats, sizeof(floats));
  }
}

}  // namespace

Status conv2d_binary_weight(const FloatProduct& product, const Conv2dShape& shape, const PackedWeight& weight,
                            const Parallel& pool) {
  const SignedSumKernels* active = active_signed_sum_kernels();
  if (active == nullptr) return no_implementation();
  Status status = check_conv2d(shape, weight.shape);
  if (!status.is_ok()) return status;
  std::unique_ptr<uint8_t[]> storage;
  PackedWeight readable;
  status = in_layout(kFloatInputLayout, weight, &storage, &readable, pool);
  if (!status.is_ok()) return status;

  // Pixels that are read one by one are the rows of a matrix.
  Conv2dShape cut = shape;
  const int64_t pixels = shape.batch * shape.height * shape.width;
  const bool is_matrix = weight.shape.taps() == 1 && shape.stride_h == 1 && shape.stride_w == 1 &&
                         shape.padding_h == 0 && shape.padding_w == 0;
  if (is_matrix && pixels > 0) cut = {1, 1, pixels, shape.channels, 1, 1, 0, 0, 1, 1, 0};

  const SignedSumKernels& kernels = *active;
  const WeightShape& w = weight.shape;
  const ChannelBlocks blocks(w);
  const FloatConvGrid grid(cut, w, kernels.sums, pool.threads);
  Scratch<float> signs;
  if (w.small_groups()) {
    const int64_t words = blocks.panels * w.K();
    signs = scratch_of<float>(words * kPanelOutputs);
    if (signs == nullptr) return Status::error("out of memory");
    expand_signs(reinterpret_cast<const uint32_t*>(readable.panels), words, signs.get());
  }
  const bool in_place = w.small_groups() && blocks.turns == 1 && product.type == FloatType::kFloat32 &&
                        blocks.inputs % kernels.channels.lanes == 0;
  const FloatConv conv = {product, cut, readable, kernels, blocks, grid, signs.get(), in_place};
  return run_tasks<Worker>(conv, pool);
}

Status linear_binary_weight(const FloatProduct& product, int64_t M, const PackedWeight& weight, const Parallel& pool) {
  if (weight.shape.taps() != 1 || weight.shape.groups != 1)
    return Status::error("linear_binary_weight needs a weight packed from a matrix");
  if (M == 0) return Status::ok();
  return conv2d_binary_weight(product, {1, 1, M, weight.shape.in_channels, 1, 1, 0, 0, 1, 1, 0}, weight, pool);
}

}  // namespace stompp
