#include "core/bconv2d.h"

#include <cstring>

#include "core/dispatch.h"
#include "core/tiles.h"

namespace stompp {
namespace {

struct PixelRows {
  const uint8_t* x;
  const uint8_t* padding_row;
  Conv2dShape shape;
  int64_t kernel_h, kernel_w, out_height, out_width;
  int64_t pixel_bytes, group_bytes;

  void gather(int64_t m, const uint8_t** pointers, int64_t stride) const {
    const int64_t ow = m % out_width, oh = m / out_width % out_height, n = m / out_width / out_height;
    const uint8_t* image = x + n * shape.height * shape.width * pixel_bytes;
    const int64_t top = oh * shape.stride_h - shape.padding_h, left = ow * shape.stride_w - shape.padding_w;
    for (int64_t kh = 0; kh < kernel_h; ++kh) {
      const int64_t h = top + kh * shape.dilation_h;
      const bool row_inside = h >= 0 && h < shape.height;
      for (int64_t kw = 0; kw < kernel_w; ++kw, pointers += stride) {
        const int64_t w = left + kw * shape.dilation_w;
        const bool inside = row_inside && w >= 0 && w < shape.width;
        *pointers = inside ? image + (h * shape.width + w) * pixel_bytes : padding_row;
      }
    }
  }
  const uint8_t* zero_row() const { return shape.padding_value == 0 ? padding_row : nullptr; }
  int64_t group_row_bytes() const { return group_bytes; }
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

// Groups whose channels do not begin on the layout's k_bytes get slices of whole words of their own.
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
  if (implementation == nullptr) return Status::error("STOMPP_CPU names no implementation that can run here");
  Status status = check_conv2d(shape, weight.shape);
  if (!status.is_ok()) return status;
  std::unique_ptr<uint8_t[]> storage;
  PackedWeight readable;
  status = in_layout_of(*implementation, weight, &storage, &readable, pool);
  if (!status.is_ok()) return status;

  const WeightShape& w = weight.shape;
  const bool sliced = w.groups == 1 || w.in_channels % (readable.layout.k_bytes * 8) == 0;
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
  return multiply(*implementation, rows, shape.batch * rows.out_height * rows.out_width, readable, epilogue, pool);
}

}  // namespace stompp
