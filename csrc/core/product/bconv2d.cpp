#include "core/product/bconv2d.h"

#include <cstring>

#include "core/base/scratch.h"
#include "core/product/blocks.h"
#include "core/product/small_groups.h"

namespace stompp {
namespace {

// Rows of the implicit matrix: an output pixel's row is its taps side by side. Rows whose taps are inside are read
// where the pixels lie; the others, and taps of single bytes, are copied.
struct PixelRows {
  const uint8_t* x;
  const uint8_t* padding;  // a row of taps that lie outside
  Conv2dShape shape;
  int64_t kernel_h, kernel_w, out_height, out_width;
  int64_t pixel_bytes, group_bytes, tap_bytes;
  int64_t row_step, tap_step;  // bytes from a tap to the one below it, and to the one beside it
  int64_t run_taps;            // of a run: all taps, a row of taps, or one
  bool pads;
  bool copies;  // every row, not only those whose taps cross a side

  int64_t runs_per_row() const { return kernel_h * kernel_w / run_taps; }
  int64_t run_bytes() const { return run_taps * tap_bytes; }
  int64_t memory_bytes() const { return pads || copies ? kBlockRows * row_bytes() : 0; }
  int64_t row_bytes() const { return kernel_h * kernel_w * tap_bytes; }
  BitImage image() const {
    return {x,
            shape.batch,
            shape.height,
            shape.width,
            pixel_bytes,
            group_bytes,
            out_height,
            out_width,
            shape.stride_h,
            shape.stride_w,
            shape.padding_h,
            shape.padding_w,
            shape.dilation_h,
            shape.dilation_w,
            shape.padding_value};
  }

  int64_t gather(int64_t first, int64_t count, int64_t group, const uint8_t** runs, uint8_t* memory,
                 TapSpan* spans) const {
    int64_t ow = first % out_width, oh = first / out_width % out_height, n = first / out_width / out_height;
    const int64_t pixel_step = shape.stride_w * pixel_bytes;
    int64_t span_count = 0;
    for (int64_t r = 0; r < count;) {
      const int64_t top = oh * shape.stride_h - shape.padding_h, left = ow * shape.stride_w - shape.padding_w;
      const int64_t origin = ((n * shape.height + top) * shape.width + left) * pixel_bytes + group * group_bytes;
      ValidTaps taps;
      clip_taps(top, shape.dilation_h, kernel_h, shape.height, &taps.h_begin, &taps.h_end);
      clip_taps(left, shape.dilation_w, kernel_w, shape.width, &taps.w_begin, &taps.w_end);
      const bool whole_rows = taps.w_end - taps.w_begin == kernel_w;
      const int64_t most = count - r < out_width - ow ? count - r : out_width - ow;
      const int64_t rows =
          whole_rows ? whole_windows(left, shape.stride_w, shape.dilation_w, kernel_w, shape.width, most) : 1;
      if (whole_rows && !copies)
        point_at_taps(origin, pixel_step, rows, taps, runs + r * runs_per_row());
      else
        for (int64_t i = r; i < r + rows; ++i)
          copy_taps(origin + (i - r) * pixel_step, taps, runs + i * runs_per_row(), memory + i * row_bytes());
      if (shape.padding_value != 0) taps = {0, kernel_h, 0, kernel_w};
      spans[span_count++] = {rows, taps};
      r += rows;
      ow += rows;
      if (ow < out_width) continue;
      ow = 0;
      if (++oh < out_height) continue;
      oh = 0;
      ++n;
    }
    return span_count;
  }

  // `origin` is where the first tap of the first pixel lies, from x on, or would lie if it were inside. No tap of these
  // pixels crosses the left or right side.
  void point_at_taps(int64_t origin, int64_t pixel_step, int64_t pixels, const ValidTaps& taps,
                     const uint8_t** runs) const {
    const int64_t step = runs_per_row();
    for (int64_t h = 0; h < kernel_h; ++h, origin += row_step) {
      const bool inside = h >= taps.h_begin && h < taps.h_end;
      for (int64_t w = 0; w < kernel_w; w += run_taps, ++runs) {
        const uint8_t* run = inside ? x + origin + w * tap_step : padding;
        for (int64_t i = 0; i < pixels; ++i) runs[i * step] = inside ? run + i * pixel_step : run;
      }
    }
  }

  void copy_taps(int64_t origin, const ValidTaps& taps, const uint8_t** runs, uint8_t* out) const {
    for (int64_t i = 0; i < runs_per_row(); ++i) runs[i] = out + i * run_bytes();
    const bool whole = taps.w_end - taps.w_begin == kernel_w && taps.h_end - taps.h_begin == kernel_h;
    if (whole && tap_bytes == 1) return copy_inside<1>(x + origin, out);
    if (whole && tap_bytes == 2) return copy_inside<2>(x + origin, out);
    for (int64_t h = 0; h < kernel_h; ++h, origin += row_step) {
      const bool inside = h >= taps.h_begin && h < taps.h_end;
      for (int64_t w = 0; w < kernel_w; ++w, out += tap_bytes) {
        const bool valid = inside && w >= taps.w_begin && w < taps.w_end;
        copy_bytes(out, valid ? x + origin + w * tap_step : padding, tap_bytes);
      }
    }
  }

  template <int64_t kTapBytes>
  void copy_inside(const uint8_t* from, uint8_t* out) const {
    for (int64_t h = 0; h < kernel_h; ++h, from += row_step)
      for (int64_t w = 0; w < kernel_w; ++w, out += kTapBytes) std::memcpy(out, from + w * tap_step, kTapBytes);
  }
};

// Copies bits [first, first + count) of a row to the front of `out`, with a zero tail.
void copy_bits(const uint32_t* row, int64_t first, int64_t count, uint32_t* out) {
  for (int64_t i = 0; i < words_for(count); ++i) {
    const int64_t bit = first + i * kWordBits, shift = bit % kWordBits;
    uint32_t word = row[bit / kWordBits] >> shift;
    if (shift != 0 && count - i * kWordBits > kWordBits - shift)
      word |= row[bit / kWordBits + 1] << (kWordBits - shift);
    out[i] = word & valid_bits(count, i);
  }
}

// Gives groups whose channels do not begin on a byte slices of whole words of their own.
void split_groups(const uint32_t* x, int64_t pixels, const WeightShape& weight, uint32_t* out, const Parallel& pool) {
  const int64_t words = words_for(weight.in_channels * weight.groups), group_words = words_for(weight.in_channels);
  parallel_for(pool, pixels, 1024 / weight.groups + 1, [&](int64_t begin, int64_t end) {
    for (int64_t pixel = begin; pixel < end; ++pixel)
      for (int64_t g = 0; g < weight.groups; ++g)
        copy_bits(x + pixel * words, g * weight.in_channels, weight.in_channels,
                  out + (pixel * weight.groups + g) * group_words);
  });
}

// Fills pixels with constant input: -1 has ones in every channel's bit and zeros in the tails.
void fill_padding(int value, int64_t channels, int64_t pixels, int64_t pixel_bytes, uint8_t* out) {
  std::memset(out, 0, static_cast<size_t>(pixels * pixel_bytes));
  if (value != -1) return;
  for (int64_t i = 0; i < pixels; ++i)
    for (int64_t c = 0; c < channels; c += 8)
      out[i * pixel_bytes + c / 8] = static_cast<uint8_t>(channels - c >= 8 ? 255 : (1 << (channels - c)) - 1);
}

}  // namespace

Status bconv2d(const uint32_t* x, const Conv2dShape& shape, const PackedWeight& weight, const Epilogue& epilogue,
               const Parallel& pool) {
  const ProductKernels* kernels = active_product_kernels();
  if (kernels == nullptr) return no_implementation();
  Status status = check_conv2d(shape, weight.shape);
  if (!status.is_ok()) return status;
  if (choose_kernel(weight.shape, 0, false, {}) == KernelChoice::kSmallGroups)
    return small_groups_conv2d(*kernels, x, shape, weight, epilogue, pool);
  std::unique_ptr<uint8_t[]> storage;
  PackedWeight readable;
  status = in_layout(kernels->layout, weight, &storage, &readable, pool);
  if (!status.is_ok()) return status;

  const WeightShape& w = weight.shape;
  const bool sliced = w.groups == 1 || w.in_channels % 8 == 0;
  const int64_t pixels = shape.batch * shape.height * shape.width;
  const int64_t pixel_words = sliced ? words_for(shape.channels) : w.groups * words_for(w.in_channels);

  PixelRows rows = {};
  rows.shape = shape;
  rows.kernel_h = w.kernel_h;
  rows.kernel_w = w.kernel_w;
  rows.out_height = shape.out_height(w);
  rows.out_width = shape.out_width(w);
  rows.pixel_bytes = pixel_words * kWordBytes;
  rows.group_bytes = sliced ? w.in_channels / 8 : words_for(w.in_channels) * kWordBytes;
  rows.tap_bytes = w.tap_bytes();
  rows.row_step = shape.dilation_h * shape.width * rows.pixel_bytes;
  rows.tap_step = shape.dilation_w * rows.pixel_bytes;
  const bool side_by_side = rows.tap_step == rows.tap_bytes;
  rows.copies = !side_by_side && w.taps() > 1 && rows.tap_bytes < kWordBytes;
  rows.run_taps = side_by_side ? w.kernel_w : rows.copies ? w.taps() : 1;
  rows.pads = shape.padding_h > 0 || shape.padding_w > 0;

  Scratch<uint32_t> groups;
  const Scratch<uint8_t> padding = scratch_of<uint8_t>(w.kernel_w * rows.tap_bytes);
  if (!sliced) groups = scratch_of<uint32_t>(pixels * pixel_words);
  if (padding == nullptr || (!sliced && groups == nullptr)) return Status::error("out of memory");
  if (!sliced) split_groups(x, pixels, w, groups.get(), pool);
  fill_padding(shape.padding_value, w.in_channels, w.kernel_w, rows.tap_bytes, padding.get());
  rows.x = reinterpret_cast<const uint8_t*>(sliced ? x : groups.get());
  rows.padding = padding.get();
  return multiply(*kernels, rows, shape.batch * rows.out_height * rows.out_width, readable, epilogue, pool);
}

}  // namespace stompp
