#include "core/float_conv/conv2d_float.h"

#include "core/float_conv/bf16_block.h"
#include "torch/host.h"
#include "torch/products.h"

namespace stompp::binding {
namespace {

// The arguments, checked; `conv` still lacks its epilogue and what it writes.
struct FloatConvArguments {
  FloatConvArguments(const char* op, const Tensor& x_argument, const Tensor& weight_argument, Ints sizes, Ints stride,
                     Ints padding, Ints dilation)
      : op(op), w(conv_weight_shape(op, sizes, 1)) {
    check(check_shape(w));
    read_weight(weight_argument);
    check(x_argument.dim() == 4, op, ": x must be [N, C, H, W] or words [N, H, W, C_words], got ", ShapeOf{x_argument});
    const bool bits = x_argument.scalar_type() == ScalarType::Int;
    if (bits) {
      x = words_of(op, "x", x_argument);
      conv.words = word_pointer(*x);
    } else {
      check_dtype(op, "x", x_argument, ScalarType::Float, "float32, or int32 words");
      x = dense_of(torch::stable::transpose(torch::stable::transpose(x_argument, 1, 2), 2, 3));
      conv.x = static_cast<const float*>(x->data_ptr());
    }
    check(x->size(3) == (bits ? words_for(w.in_channels) : w.in_channels), op, ": x has shape ", ShapeOf{x_argument},
          ", which must have ", w.in_channels, " channels");
    shape = conv2d_shape(op, {x->size(0), x->size(1), x->size(2), w.in_channels}, stride, padding, dilation, 0);
    check(op, check_conv2d(shape, w));
  }

  void read_weight(const Tensor& argument) {
    const int64_t panels = ceil_div(w.out_channels, kPanelOutputs);
    if (argument.scalar_type() == ScalarType::BFloat16) {
      conv.bf16_parts = argument.dim() == 6 && argument.size(2) == 1 ? 1 : 2;
      check_shape(op, "weight", argument,
                  {panels, ceil_div(w.K(), kBf16Step), conv.bf16_parts, kBf16Pairs, kPanelOutputs, 2});
    } else {
      check_dtype(op, "weight", argument, ScalarType::Float, "float32 or bfloat16, made by pack_float_weight");
      check_shape(op, "weight", argument, {panels, w.K(), kPanelOutputs});
    }
    weight = dense_of(argument);
    if (conv.bf16_parts != 0)
      conv.bf16_weights = static_cast<const uint16_t*>(weight->data_ptr());
    else
      conv.weights = static_cast<const float*>(weight->data_ptr());
  }

  const float* of_outputs(const char* name, const Tensor& values, std::optional<Tensor>* kept) const {
    check_dtype(op, name, values, ScalarType::Float, "float32");
    check_shape(op, name, values, {w.out_channels});
    *kept = dense_of(values);
    return static_cast<const float*>((*kept)->data_ptr());
  }

  Tensor run(Tensor out) const {
    check(op, conv2d_float(conv, shape, w, torch_pool()));
    return out;
  }

  const char* op;
  WeightShape w;
  Conv2dShape shape;
  FloatConv conv = {};
  std::optional<Tensor> x, weight;
};

Tensor conv2d_float_cpu(const Tensor& x, const Tensor& weight, Ints weight_shape, Ints stride, Ints padding,
                        Ints dilation, const std::optional<Tensor>& scale, const std::optional<Tensor>& bias,
                        bool fused) {
  FloatConvArguments arguments("conv2d_float", x, weight, weight_shape, stride, padding, dilation);
  check(scale.has_value() == bias.has_value(), "conv2d_float: scale and bias must be given both or neither");
  std::optional<Tensor> scales, biases;
  if (scale.has_value()) {
    arguments.conv.scale = arguments.of_outputs("scale", *scale, &scales);
    arguments.conv.bias = arguments.of_outputs("bias", *bias, &biases);
  }
  arguments.conv.fused = fused;
  const WeightShape& w = arguments.w;
  const int64_t height = arguments.shape.out_height(w), width = arguments.shape.out_width(w);
  const std::vector<int64_t> sizes = {arguments.shape.batch, w.out_channels, height, width};
  Tensor out = new_tensor(sizes, {height * width * w.out_channels, 1, width * w.out_channels, w.out_channels},
                          ScalarType::Float);
  arguments.conv.out = static_cast<float*>(out.data_ptr());
  // An empty batch has no memory, and without out the kernel would write words.
  return out.numel() == 0 ? out : arguments.run(out);
}

Tensor conv2d_float_signs_cpu(const Tensor& x, const Tensor& weight, Ints weight_shape, Ints stride, Ints padding,
                              Ints dilation, const Tensor& low, const Tensor& high) {
  FloatConvArguments arguments("conv2d_float_signs", x, weight, weight_shape, stride, padding, dilation);
  std::optional<Tensor> lows, highs;
  arguments.conv.limits = {arguments.of_outputs("low", low, &lows), arguments.of_outputs("high", high, &highs)};
  const WeightShape& w = arguments.w;
  Tensor out = new_tensor(
      {arguments.shape.batch, arguments.shape.out_height(w), arguments.shape.out_width(w), words_for(w.out_channels)},
      ScalarType::Int);
  arguments.conv.out_words = static_cast<uint32_t*>(out.data_ptr());
  return arguments.run(out);
}

}  // namespace
}  // namespace stompp::binding

STABLE_TORCH_LIBRARY_IMPL(stompp, CPU, m) {
  using namespace stompp::binding;
  m.impl("conv2d_float", TORCH_BOX(&conv2d_float_cpu));
  m.impl("conv2d_float_signs", TORCH_BOX(&conv2d_float_signs_cpu));
}
