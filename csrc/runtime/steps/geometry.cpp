#include "runtime/steps/geometry.h"

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

int64_t Window::Side::count(int64_t size, bool ceil_mode) const {
  const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
  if (room < 0) return 0;
  const int64_t whole = room / stride + 1, more = ceil_div(room, stride) + 1;
  // The last window begins inside of the image or its padding before it.
  return ceil_mode && (more - 1) * stride < size + padding ? more : whole;
}

Outcome window_of(const Planning& p, Window* window) {
  Window::Side &h = window->height, &w = window->width;
  STOMPP_TRY(p.own("kernel_size").pair("kernel_size", 1, &h.kernel, &w.kernel));
  STOMPP_TRY(p.own("stride").pair("stride", 0, &h.stride, &w.stride));
  STOMPP_TRY(p.own("padding").pair("padding", 0, &h.padding, &w.padding));
  STOMPP_TRY(p.own("dilation").pair("dilation", 1, &h.dilation, &w.dilation));
  if (h.stride == 0) h.stride = h.kernel, w.stride = w.kernel;
  window->ceil_mode = p.flag("ceil_mode", false);
  if (h.padding > h.kernel / 2 || w.padding > w.kernel / 2) return bad_file("padding of more than half a window");
  return {};
}

}  // namespace stompp::runtime
