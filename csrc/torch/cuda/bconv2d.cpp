#include "cuda/bconv2d/bconv2d.h"

#include "torch/cuda/gpu.h"
#include "torch/epilogues.h"
#include "torch/products.h"

namespace stompp::binding {
namespace {

struct Convolution {
  Convolution(const char* op, const Tensor& x_words, const Tensor& weight_bytes, Ints weight_shape, Ints stride,
              Ints padding, Ints dilation, int64_t groups, int64_t padding_value)
      : gpu(op, "x_words", x_words),
        weight(gpu.weight(op, weight_bytes, conv_weight_shape(op, weight_shape, groups))),
        arguments(op, x_words, weight.shape, stride, padding, dilation, padding_value) {}

  Status operator()(const Epilogue& epilogue) const {
    return cuda::bconv2d(word_pointer(arguments.x), arguments.shape, weight, epilogue, gpu.device(), gpu.stream());
  }

  Gpu gpu;
  cuda::DeviceWeight weight;
  Conv2dArguments arguments;
};

Tensor bconv2d_cuda(const Tensor& x_words, const Tensor& weight, Ints weight_shape, Ints stride, Ints padding,
                    Ints dilation, int64_t groups, int64_t padding_value) {
  const Convolution convolution("bconv2d", x_words, weight, weight_shape, stride, padding, dilation, groups,
                                padding_value);
  return with_int32("bconv2d", convolution.gpu, convolution.arguments.out_sizes, convolution);
}

Tensor bconv2d_affine_cuda(const Tensor& x_words, const Tensor& weight, Ints weight_shape, Ints stride, Ints padding,
                           Ints dilation, int64_t groups, int64_t padding_value, const Tensor& scale,
                           const Tensor& bias, const std::optional<Tensor>& residual,
                           const std::optional<Tensor>& residual_scale, const std::optional<Tensor>& residual_bias,
                           bool fused, ScalarType dtype) {
  const Convolution convolution("bconv2d_affine", x_words, weight, weight_shape, stride, padding, dilation, groups,
                                padding_value);
  return with_affine("bconv2d_affine", convolution.gpu, convolution.arguments.out_sizes,
                     {scale, bias, residual, residual_scale, residual_bias, fused}, dtype, convolution);
}

Tensor bconv2d_threshold_cuda(const Tensor& x_words, const Tensor& weight, Ints weight_shape, Ints stride, Ints padding,
                              Ints dilation, int64_t groups, int64_t padding_value, const Tensor& thresholds,
                              const Tensor& flip_words, const std::optional<Tensor>& residual_words) {
  const Convolution convolution("bconv2d_threshold", x_words, weight, weight_shape, stride, padding, dilation, groups,
                                padding_value);
  return with_threshold("bconv2d_threshold", convolution.gpu, convolution.arguments.out_sizes,
                        {thresholds, flip_words, residual_words}, convolution);
}

}  // namespace

void register_bconv2d(torch::stable::detail::StableLibrary& library) {
  library.impl("bconv2d", TORCH_BOX(&bconv2d_cuda));
  library.impl("bconv2d_affine", TORCH_BOX(&bconv2d_affine_cuda));
  library.impl("bconv2d_threshold", TORCH_BOX(&bconv2d_threshold_cuda));
}

}  // namespace stompp::binding
