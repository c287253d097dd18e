#include "core/bconv2d.h"

#include "torch/tensors.h"

namespace stompp::binding {
namespace {

// The convolution's arguments, checked, and what every epilogue needs of them.
struct Convolution {
  Convolution(const char* op, const Tensor& x_words, const Tensor& weight_bytes, Ints weight_shape, Ints stride,
              Ints padding, Ints dilation, int64_t groups, int64_t padding_value)
      : x(words_of(op, "x_words", x_words)) {
    check(x.dim() == 4, op, ": x_words must be [N, H, W, C_words], got ", ShapeOf{x});
    check(weight_shape.size() == 4, op, ": weight_shape must be [O, I/groups, kh, kw]");
    check(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, op,
          ": stride, padding and dilation need two values each");
    check(padding_value >= -1 && padding_value <= 1, op, ": padding_value must be 0, 1 or -1, got ", padding_value);
    const WeightShape logical = {weight_shape[0], weight_shape[1], weight_shape[2], weight_shape[3], groups};
    weight = weight_argument(op, weight_bytes, logical);
    const int64_t channels = logical.in_channels * groups;
    check(x.size(3) == words_for(channels), op, ": x_words has shape ", ShapeOf{x},
          ", whose last dimension must be ceil(C / 32) for C = ", channels, " channels");
    shape = {x.size(0),
             x.size(1),
             x.size(2),
             channels,
             stride[0],
             stride[1],
             padding[0],
             padding[1],
             dilation[0],
             dilation[1],
             static_cast<int>(padding_value)};
    check(check_conv2d(shape, logical));
    out_sizes = {shape.batch, shape.out_height(logical), shape.out_width(logical), logical.out_channels};
  }

  Status operator()(const Epilogue& epilogue) const {
    return bconv2d(word_pointer(x), shape, weight.view, epilogue, torch_pool());
  }

  Tensor x;
  WeightArgument weight;
  Conv2dShape shape;
  std::vector<int64_t> out_sizes;
};

Tensor bconv2d_cpu(const Tensor& x_words, const Tensor& weight, Ints weight_shape, Ints stride, Ints padding,
                   Ints dilation, int64_t groups, int64_t padding_value) {
  const Convolution convolution("bconv2d", x_words, weight, weight_shape, stride, padding, dilation, groups,
                                padding_value);
  return with_int32(convolution.out_sizes, convolution);
}

Tensor bconv2d_affine_cpu(const Tensor& x_words, const Tensor& weight, Ints weight_shape, Ints stride, Ints padding,
                          Ints dilation, int64_t groups, int64_t padding_value, const Tensor& scale, const Tensor& bias,
                          const std::optional<Tensor>& residual, ScalarType dtype) {
  const Convolution convolution("bconv2d_affine", x_words, weight, weight_shape, stride, padding, dilation, groups,
                                padding_value);
  return with_affine("bconv2d_affine", convolution.out_sizes, {scale, bias, residual, dtype}, convolution);
}

Tensor bconv2d_threshold_cpu(const Tensor& x_words, const Tensor& weight, Ints weight_shape, Ints stride, Ints padding,
                             Ints dilation, int64_t groups, int64_t padding_value, const Tensor& thresholds,
                             const Tensor& flip_words, const std::optional<Tensor>& residual_words) {
  const Convolution convolution("bconv2d_threshold", x_words, weight, weight_shape, stride, padding, dilation, groups,
                                padding_value);
  return with_threshold("bconv2d_threshold", convolution.out_sizes, {thresholds, flip_words, residual_words},
                        convolution);
}

}  // namespace
}  // namespace stompp::binding

STABLE_TORCH_LIBRARY_IMPL(stompp, CPU, m) {
  using namespace stompp::binding;
  m.impl("bconv2d", TORCH_BOX(&bconv2d_cpu));
  m.impl("bconv2d_affine", TORCH_BOX(&bconv2d_affine_cpu));
  m.impl("bconv2d_threshold", TORCH_BOX(&bconv2d_threshold_cpu));
}
