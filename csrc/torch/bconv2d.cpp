#include "core/product/bconv2d.h"

#include "torch/epilogues.h"
#include "torch/host.h"
#include "torch/products.h"

namespace stompp::binding {
namespace {

struct Convolution {
  Convolution(const char* op, const Tensor& x_words, const Tensor& weight_bytes, Ints weight_shape, Ints stride,
              Ints padding, Ints dilation, int64_t groups, int64_t padding_value)
      : weight(weight_argument(op, weight_bytes, conv_weight_shape(op, weight_shape, groups))),
        arguments(op, x_words, weight.view.shape, stride, padding, dilation, padding_value) {}

  Status operator()(const Epilogue& epilogue) const {
    return bconv2d(word_pointer(arguments.x), arguments.shape, weight.view, epilogue, torch_pool());
  }

  WeightArgument weight;
  Conv2dArguments arguments;
};

Tensor bconv2d_cpu(const Tensor& x_words, const Tensor& weight, Ints weight_shape, Ints stride, Ints padding,
                   Ints dilation, int64_t groups, int64_t padding_value) {
  const Convolution convolution("bconv2d", x_words, weight, weight_shape, stride, padding, dilation, groups,
                                padding_value);
  return with_int32("bconv2d", Host(), convolution.arguments.out_sizes, convolution);
}

Tensor bconv2d_affine_cpu(const Tensor& x_words, const Tensor& weight, Ints weight_shape, Ints stride, Ints padding,
                          Ints dilation, int64_t groups, int64_t padding_value, const Tensor& scale, const Tensor& bias,
                          const std::optional<Tensor>& residual, const std::optional<Tensor>& residual_scale,
                          const std::optional<Tensor>& residual_bias, bool fused, ScalarType dtype) {
  const Convolution convolution("bconv2d_affine", x_words, weight, weight_shape, stride, padding, dilation, groups,
                                padding_value);
  return with_affine("bconv2d_affine", Host(), convolution.arguments.out_sizes,
                     {scale, bias, residual, residual_scale, residual_bias, fused}, dtype, convolution);
}

std::tuple<Tensor, Tensor> bconv2d_affine_signs_cpu(const Tensor& x_words, const Tensor& weight, Ints weight_shape,
                                                    Ints stride, Ints padding, Ints dilation, int64_t groups,
                                                    int64_t padding_value, const Tensor& scale, const Tensor& bias,
                                                    const std::optional<Tensor>& residual,
                                                    const std::optional<Tensor>& residual_scale,
                                                    const std::optional<Tensor>& residual_bias, bool fused,
                                                    bool floats) {
  const Convolution convolution("bconv2d_affine_signs", x_words, weight, weight_shape, stride, padding, dilation,
                                groups, padding_value);
  return with_affine_signs("bconv2d_affine_signs", Host(), convolution.arguments.out_sizes,
                           {scale, bias, residual, residual_scale, residual_bias, fused}, floats, convolution);
}

Tensor bconv2d_threshold_cpu(const Tensor& x_words, const Tensor& weight, Ints weight_shape, Ints stride, Ints padding,
                             Ints dilation, int64_t groups, int64_t padding_value, const Tensor& thresholds,
                             const Tensor& flip_words, const std::optional<Tensor>& residual_words) {
  const Convolution convolution("bconv2d_threshold", x_words, weight, weight_shape, stride, padding, dilation, groups,
                                padding_value);
  return with_threshold("bconv2d_threshold", Host(), convolution.arguments.out_sizes,
                        {thresholds, flip_words, residual_words}, convolution);
}

}  // namespace
}  // namespace stompp::binding

STABLE_TORCH_LIBRARY_IMPL(stompp, CPU, m) {
  using namespace stompp::binding;
  m.impl("bconv2d", TORCH_BOX(&bconv2d_cpu));
  m.impl("bconv2d_affine", TORCH_BOX(&bconv2d_affine_cpu));
  m.impl("bconv2d_affine_signs", TORCH_BOX(&bconv2d_affine_signs_cpu));
  m.impl("bconv2d_threshold", TORCH_BOX(&bconv2d_threshold_cpu));
}
