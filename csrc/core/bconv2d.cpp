#include "core/bconv2d.h"

#include <cstring>

#include "core/blocks.h"
#include "core/depthwise.h"
#include "core/dispatch.h"

namespace stompp {
namespace {

// A copy of a few bytes without a call, in pieces of which the last may overlap the one before.
template <int64_t kPiece>
inline void copy_pieces(uint8_t* to, const uint8_t* from, int64_t count) {
  std::memcpy(to, from, kPiece);
  for (int64_t i = kPiece; i < count - kPiece; i += kPiece) std::memcpy(to + i, from + i, kPiece);
  std::memcpy(to + count - kPiece, from + count - kPiece, kPiece);
}

inline void copy_bytes(uint8_t* to, const uint8_t* from, int64_t count) {
  if (count >= 16) return copy_pieces<16>(to, from, count);
  if (count >= 4) return copy_pieces<4>(to, from, count);
  if (count >= 2) return copy_pieces<2>(to, from, count);
  *to = *from;
}

// The taps of one axis, `size` of them from `start` on, that lie in [0, limit).
inline void clip_taps(int64_t start, int64_t dilation, int64_t size, int64_t limit, int64_t* begin, int64_t* end) {
  *begin = 0;
  *end = size;
  if (start >= 0 && start + (size - 1) * dilation < limit) return;
  const int64_t first = start < 0 ? ceil_div(-start, dilation) : 0;
  const int64_t last = start < limit ? ceil_div(limit - start, dilation) : 0;
  *end = last < size ? last : size;
  *begin = first < *end ? first : *end;
}

inline int64_t smallest(int64_t a, int64_t b, int64_t c) {
  const int64_t least = a < b ? a : b;
  return least < c ? least : c;
}

struct PixelRows {
  const uint8_t* x;
  const uint8_t* padding_row;
  Conv2dShape shape;
  int64_t kernel_h, kernel_w, out_height, out_width;
  int64_t pixel_bytes, group_bytes, tap_bytes;
  int64_t k_bytes;             // of a gathered row: its taps, then zeros
  int64_t row_step, tap_step;  // bytes from a tap to the one below it, and to the one beside it
  bool dense;                  // 1x1, stride 1, no padding: rows lie as pixels do

  int64_t block_bytes() const { return dense ? 0 : kBlockRows * k_bytes; }
  bool zero_padding() const { return !dense && shape.padding_value == 0; }

  RowBlock gather(int64_t first, int64_t count, int64_t group, uint8_t* memory, ValidTaps* valid) const {
    if (dense) return {x + first * pixel_bytes + group * group_bytes, pixel_bytes, count, k_bytes};
    int64_t ow = first % out_width, oh = first / out_width % out_height, n = first / out_width / out_height;
    for (int64_t r = 0; r < count;) {
      const int64_t top = oh * shape.stride_h - shape.padding_h, left = ow * shape.stride_w - shape.padding_w;
      ValidTaps taps;
      clip_taps(top, shape.dilation_h, kernel_h, shape.height, &taps.h_begin, &taps.h_end);
      clip_taps(left, shape.dilation_w, kernel_w, shape.width, &taps.w_begin, &taps.w_end);
      int64_t run = 1;  // pixels beside each other whose taps are the same
      if (taps.w_end - taps.w_begin == kernel_w) {
        const int64_t last_left = shape.width - 1 - (kernel_w - 1) * shape.dilation_w;
        run = smallest(count - r, out_width - ow, (last_left - left) / shape.stride_w + 1);
      }
      for (int64_t i = 0; i < run; ++i) valid[r + i] = taps;
      const int64_t pixel = (n * shape.height + top) * shape.width + left;
      gather_run(pixel * pixel_bytes + group * group_bytes, group * group_bytes, taps, run, memory + r * k_bytes);
      r += run;
      ow += run;
      if (ow < out_width) continue;
      ow = 0;
      if (++oh < out_height) continue;
      oh = 0;
      ++n;
    }
    return {memory, k_bytes, count, k_bytes};
  }

  // `origin` is where the first tap of the first pixel lies, from x on, or would lie if it were inside.
  void gather_run(int64_t origin, int64_t padding_offset, const ValidTaps& taps, int64_t run, uint8_t* out) const {
    const int64_t pixel_step = shape.stride_w * pixel_bytes, width_bytes = kernel_w * tap_bytes;
    const int64_t tail = k_bytes - kernel_h * width_bytes;
    const bool whole = taps.w_end - taps.w_begin == kernel_w && taps.h_end - taps.h_begin == kernel_h;
    for (; run > 0; --run, origin += pixel_step, out += k_bytes) {
      if (tail != 0) std::memset(out + k_bytes - tail, 0, static_cast<size_t>(tail));
      if (whole && tap_step == tap_bytes)
        for (int64_t h = 0; h < kernel_h; ++h)
          copy_bytes(out + h * width_bytes, x + origin + h * row_step, width_bytes);
      else if (whole && tap_bytes == 1)
        gather_taps<1>(x + origin, out);
      else if (whole && tap_bytes == 2)
        gather_taps<2>(x + origin, out);
      else
        gather_pixel(origin, padding_offset, taps, out);
    }
  }

  // All taps, of up to 16 channels, lie inside.
  template <int64_t kTapBytes>
  void gather_taps(const uint8_t* from, uint8_t* out) const {
    for (int64_t h = 0; h < kernel_h; ++h, from += row_step)
      for (int64_t w = 0; w < kernel_w; ++w, out += kTapBytes) std::memcpy(out, from + w * tap_step, kTapBytes);
  }

  void gather_pixel(int64_t origin, int64_t padding_offset, const ValidTaps& taps, uint8_t* out) const {
    for (int64_t h = 0; h < kernel_h; ++h, origin += row_step) {
      const bool inside = h >= taps.h_begin && h < taps.h_end;
      for (int64_t w = 0; w < kernel_w;) {
        const bool valid = inside && w >= taps.w_begin && w < taps.w_end;
        const int64_t count = valid && tap_step == tap_bytes ? taps.w_end - w : 1;  // taps that lie side by side
        copy_bytes(out, valid ? x + origin + w * tap_step : padding_row + padding_offset, count * tap_bytes);
        out += count * tap_bytes;
        w += count;
      }
    }
  }
};

// Bits [first, first + count) of a row to the front of `out`, with a zero tail.
void copy_bits(const uint32_t* row, int64_t first, int64_t count, uint32_t* out) {
  for (int64_t i = 0; i < words_for(count); ++i) {
    const int64_t bit = first + i * kWordBits, shift = bit % kWordBits;
    uint32_t word = row[bit / kWordBits] >> shift;
    if (shift != 0 && count - i * kWordBits > kWordBits - shift)
      word |= row[bit / kWordBits + 1] << (kWordBits - shift);
    out[i] = word & valid_bits(count, i);
  }
}

// Groups whose channels do not begin on a byte get slices of whole words of their own.
void split_groups(const uint32_t* x, int64_t pixels, const WeightShape& weight, uint32_t* out, const Parallel& pool) {
  const int64_t words = words_for(weight.in_channels * weight.groups), group_words = words_for(weight.in_channels);
  parallel_for(pool, pixels, 1024 / weight.groups + 1, [&](int64_t begin, int64_t end) {
    for (int64_t pixel = begin; pixel < end; ++pixel)
      for (int64_t g = 0; g < weight.groups; ++g)
        copy_bits(x + pixel * words, g * weight.in_channels, weight.in_channels,
                  out + (pixel * weight.groups + g) * group_words);
  });
}

// One pixel of constant input: -1 has ones in every channel's bit and zeros in the tails.
void fill_padding(int value, int64_t channels_per_slice, int64_t slices, uint32_t* out) {
  for (int64_t s = 0; s < slices; ++s)
    for (int64_t i = 0; i < words_for(channels_per_slice); ++i)
      *out++ = value == -1 ? valid_bits(channels_per_slice, i) : 0;
}

}  // namespace

Status check_conv2d(const Conv2dShape& s, const WeightShape& w) {
  constexpr int64_t kMaxSize = int64_t{1} << 31;
  if (s.batch < 0 || s.height < 1 || s.width < 1) return Status::error("bconv2d: input sizes must be positive");
  if (s.height >= kMaxSize || s.width >= kMaxSize) return Status::error("bconv2d: input sizes must be below 2^31");
  if (s.stride_h < 1 || s.stride_w < 1 || s.dilation_h < 1 || s.dilation_w < 1)
    return Status::error("bconv2d: stride and dilation must be at least 1");
  if (s.padding_h < 0 || s.padding_w < 0) return Status::error("bconv2d: padding must not be negative");
  if (s.stride_h >= kMaxSize || s.stride_w >= kMaxSize || s.dilation_h >= kMaxSize || s.dilation_w >= kMaxSize ||
      s.padding_h >= kMaxSize || s.padding_w >= kMaxSize)
    return Status::error("bconv2d: stride, dilation and padding must be below 2^31");
  if (s.padding_value < -1 || s.padding_value > 1) return Status::error("bconv2d: padding_value must be 0, 1 or -1");
  if (s.channels != w.in_channels * w.groups)
    return Status::error("bconv2d: the input's channels must be the weight's input channels times groups");
  if (s.dilation_h * (w.kernel_h - 1) + 1 > s.height + 2 * s.padding_h ||
      s.dilation_w * (w.kernel_w - 1) + 1 > s.width + 2 * s.padding_w)
    return Status::error("bconv2d: the kernel reaches beyond the padded input");
  return Status::ok();
}

Status bconv2d(const uint32_t* x, const Conv2dShape& shape, const PackedWeight& weight, const Epilogue& epilogue,
               const Parallel& pool) {
  const Implementation* implementation = active_implementation();
  if (implementation == nullptr) return no_implementation();
  Status status = check_conv2d(shape, weight.shape);
  if (!status.is_ok()) return status;
  if (weight.shape.is_depthwise()) return depthwise_conv2d(x, shape, weight, epilogue, pool);
  std::unique_ptr<uint8_t[]> storage;
  PackedWeight readable;
  status = in_layout_of(*implementation, weight, &storage, &readable, pool);
  if (!status.is_ok()) return status;

  const WeightShape& w = weight.shape;
  const bool sliced = w.groups == 1 || w.in_channels % 8 == 0;
  const int64_t pixels = shape.batch * shape.height * shape.width;
  const int64_t pixel_words = sliced ? words_for(shape.channels) : w.groups * words_for(w.in_channels);

  std::unique_ptr<uint32_t[]> groups;
  std::unique_ptr<uint32_t[]> padding(new (std::nothrow) uint32_t[static_cast<size_t>(pixel_words)]);
  if (!sliced) groups.reset(new (std::nothrow) uint32_t[static_cast<size_t>(pixels * pixel_words)]);
  if (padding == nullptr || (!sliced && groups == nullptr)) return Status::error("out of memory");
  if (!sliced) split_groups(x, pixels, w, groups.get(), pool);
  fill_padding(shape.padding_value, sliced ? shape.channels : w.in_channels, sliced ? 1 : w.groups, padding.get());

  PixelRows rows = {};
  rows.x = reinterpret_cast<const uint8_t*>(sliced ? x : groups.get());
  rows.padding_row = reinterpret_cast<const uint8_t*>(padding.get());
  rows.shape = shape;
  rows.kernel_h = w.kernel_h;
  rows.kernel_w = w.kernel_w;
  rows.out_height = shape.out_height(w);
  rows.out_width = shape.out_width(w);
  rows.pixel_bytes = pixel_words * kWordBytes;
  rows.group_bytes = sliced ? w.in_channels / 8 : words_for(w.in_channels) * kWordBytes;
  rows.tap_bytes = w.tap_bytes();
  rows.k_bytes = readable.layout.row_bytes(w);
  rows.row_step = shape.dilation_h * shape.width * rows.pixel_bytes;
  rows.tap_step = shape.dilation_w * rows.pixel_bytes;
  const bool zero_tail = rows.k_bytes == rows.tap_bytes || (w.groups == 1 && rows.k_bytes <= rows.pixel_bytes);
  rows.dense = zero_tail && w.taps() == 1 && shape.stride_h == 1 && shape.stride_w == 1 && shape.padding_h == 0 &&
               shape.padding_w == 0;
  return multiply(*implementation, rows, shape.batch * rows.out_height * rows.out_width, readable, epilogue, pool);
}

}  // namespace stompp
