// What shapes are allowed, on any device: the library for GPUs has this file of the core too.
#include "core/product/bconv2d.h"
#include "core/product/packed_weight.h"

namespace stompp {

Status check_shape(const WeightShape& s) {
  if (s.out_channels < 1 || s.in_channels < 1 || s.kernel_h < 1 || s.kernel_w < 1 || s.groups < 1)
    return Status::error("every size of a packed weight must be at least 1");
  constexpr int64_t kMaxSize = int64_t{1} << 30;
  if (s.out_channels > kMaxSize || s.in_channels > kMaxSize || s.kernel_h > 32767 || s.kernel_w > 32767)
    return Status::error("a packed weight's channels must be at most 2^30 and its kernel at most 32767");
  if (s.out_channels % s.groups != 0) return Status::error("groups must divide the output channels of a packed weight");
  // 2 * pop <= 2 * K must fit int32, and so must every offset into a panel fit int64.
  if (s.in_channels > (kMaxSize - 1) / s.taps()) return Status::error("a packed weight's K must be below 2^30");
  if (s.out_channels > (int64_t{1} << 56) / (s.taps() * round_up(s.in_channels, 64) * kPanelOutputs))
    return Status::error("a packed weight is too large");
  return Status::ok();
}

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

}  // namespace stompp
