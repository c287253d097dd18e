#include "core/binary_weight/binary_weight.h"

#include "core/isa/dispatch.h"
#include "torch/host.h"
#include "torch/products.h"

namespace stompp::binding {
namespace {

// The floats that a product reads, checked; into() adds where it writes.
struct FloatProductArguments {
  FloatProductArguments(const char* op, const Tensor& x, const Tensor& scale, const std::optional<Tensor>& bias,
                        int64_t N)
      : x(dense_of(x)), type(short_float_type(op, "x", x.scalar_type())), scale(channels(op, "scale", scale, N)) {
    if (bias.has_value()) this->bias = channels(op, "bias", *bias, N);
  }

  static Tensor channels(const char* op, const char* argument, const Tensor& values, int64_t N) {
    check_dtype(op, argument, values, ScalarType::Float, "float32");
    check_shape(op, argument, values, {N});
    return dense_of(values);
  }

  FloatProduct into(Tensor& out) const {
    return {x.data_ptr(), out.data_ptr(), type, static_cast<const float*>(scale.data_ptr()),
            bias.has_value() ? static_cast<const float*>(bias->data_ptr()) : nullptr};
  }

  Tensor x;
  FloatType type;
  Tensor scale;
  std::optional<Tensor> bias;
};

Tensor linear_binary_weight_cpu(const Tensor& x, const Tensor& weight, int64_t N, int64_t K, const Tensor& scale,
                                const std::optional<Tensor>& bias) {
  const char* op = "linear_binary_weight";
  const WeightArgument packed = weight_argument(op, weight, {N, K, 1, 1, 1});
  check(x.dim() >= 1 && x.size(x.dim() - 1) == K, op, ": x has shape ", ShapeOf{x}, ", whose last dimension must be ",
        K);
  const FloatProductArguments arguments(op, x, scale, bias, N);
  std::vector<int64_t> sizes = sizes_of(x);
  sizes.back() = N;
  Tensor out = new_tensor(sizes, x.scalar_type());
  check(op, linear_binary_weight(arguments.into(out), x.numel() / K, packed.view, torch_pool()));
  return out;
}

Tensor conv2d_binary_weight_cpu(const Tensor& x, const Tensor& weight, Ints weight_shape, Ints stride, Ints padding,
                                Ints dilation, int64_t groups, const Tensor& scale, const std::optional<Tensor>& bias) {
  const char* op = "conv2d_binary_weight";
  const WeightArgument packed = weight_argument(op, weight, conv_weight_shape(op, weight_shape, groups));
  const WeightShape& w = packed.view.shape;
  check(x.dim() == 4, op, ": x must be [N, C, H, W], got ", ShapeOf{x});
  check(x.size(1) == w.in_channels * w.groups, op, ": x has shape ", ShapeOf{x}, ", whose second dimension must be ",
        w.in_channels * w.groups);
  const Conv2dShape shape =
      conv2d_shape(op, {x.size(0), x.size(2), x.size(3), x.size(1)}, stride, padding, dilation, 0);
  check(op, check_conv2d(shape, w));
  const Tensor pixels = torch::stable::transpose(torch::stable::transpose(x, 1, 2), 2, 3);
  const FloatProductArguments arguments(op, pixels, scale, bias, w.out_channels);
  const std::vector<int64_t> sizes = {shape.batch, w.out_channels, shape.out_height(w), shape.out_width(w)};
  const int64_t row = w.out_channels * std::max<int64_t>(sizes[3], 1);
  Tensor out = new_tensor(sizes, {row * std::max<int64_t>(sizes[2], 1), 1, row, w.out_channels}, x.scalar_type());
  check(op, conv2d_binary_weight(arguments.into(out), shape, packed.view, torch_pool()));
  return out;
}

Tensor pack_binary_weight_words_cpu(const Tensor& words, Ints shape_argument, int64_t groups) {
  const char* op = "pack_binary_weight_words";
  const WeightShape shape = weight_shape(shape_argument, groups);
  check_shape(op, "words", words, words_sizes(shape, shape_argument.size() == 2));
  const Tensor dense = words_of(op, "words", words);
  Tensor out = new_tensor({packed_bytes(shape, kFloatInputLayout)}, ScalarType::Byte);
  check(pack_weight_words(word_pointer(dense), shape, kFloatInputLayout, static_cast<uint8_t*>(out.data_ptr()),
                          torch_pool()));
  return out;
}

Tensor unpack_binary_weight_words_cpu(const Tensor& weight, Ints shape_argument, int64_t groups) {
  const WeightShape shape = weight_shape(shape_argument, groups);
  const WeightArgument argument = weight_argument("unpack_binary_weight_words", weight, shape);
  Tensor words = new_tensor(words_sizes(shape, shape_argument.size() == 2), ScalarType::Int);
  check(unpack_weight_words(argument.view, static_cast<uint32_t*>(words.data_ptr()), torch_pool()));
  return words;
}

}  // namespace
}  // namespace stompp::binding

STABLE_TORCH_LIBRARY_IMPL(stompp, CPU, m) {
  using namespace stompp::binding;
  m.impl("linear_binary_weight", TORCH_BOX(&linear_binary_weight_cpu));
  m.impl("conv2d_binary_weight", TORCH_BOX(&conv2d_binary_weight_cpu));
  m.impl("pack_binary_weight_words", TORCH_BOX(&pack_binary_weight_words_cpu));
  m.impl("unpack_binary_weight_words", TORCH_BOX(&unpack_binary_weight_words_cpu));
}
