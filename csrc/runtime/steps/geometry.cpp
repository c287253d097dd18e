#include "runtime/steps/geometry.h"

#include <algorithm>

namespace stompp::runtime {

Outcome conv2d_shape(const Planning& p, const Pixels& x, const WeightShape& w, int padding_value, Conv2dShape* shape) {
  Conv2dShape& s = *shape;
  s = {x.batch, x.height, x.width, x.channels, 1, 1, 0, 0, 1, 1, padding_value};
  STOMPP_TRY(p.own("stride").pair("stride", 1, &s.stride_h, &s.stride_w));
  const Json* padding = p.find("padding");
  if (padding == nullptr || !padding->is_text("valid"))
    STOMPP_TRY(p.own("padding").pair("padding", 0, &s.padding_h, &s.padding_w));
  STOMPP_TRY(p.own("dilation").pair("dilation", 1, &s.dilation_h, &s.dilation_w));
  return of(check_conv2d(s, w), STOMPP_BAD_ARGUMENT);
}

int64_t Window::count(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, bool ceil_mode) {
  const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
  if (room < 0) return 0;
  const int64_t whole = room / stride + 1, more = ceil_div(room, stride) + 1;
  // The last window begins inside of the image or its padding before it.
  return ceil_mode && (more - 1) * stride < size + padding ? more : whole;
}

Outcome window_of(const Planning& p, Window* window) {
  Window& w = *window;
  STOMPP_TRY(p.own("kernel_size").pair("kernel_size", 1, &w.kernel_h, &w.kernel_w));
  STOMPP_TRY(p.own("stride").pair("stride", 0, &w.stride_h, &w.stride_w));
  STOMPP_TRY(p.own("padding").pair("padding", 0, &w.padding_h, &w.padding_w));
  STOMPP_TRY(p.own("dilation").pair("dilation", 1, &w.dilation_h, &w.dilation_w));
  if (w.stride_h == 0) w.stride_h = w.kernel_h, w.stride_w = w.kernel_w;
  w.ceil_mode = p.flag("ceil_mode", false);
  return {};
}

}  // namespace stompp::runtime
