#include "cuda/bconv2d/bconv2d.h"

#include "torch/cuda/gpu.h"
#include "torch/product_ops.h"

namespace stompp::binding {
namespace {

struct Convolution {
  using Op = Bconv2d;

  Convolution(const char* op, const Tensor& x_words, const Tensor& weight_bytes, Ints weight_shape, Ints stride,
              Ints padding, Ints dilation, int64_t groups, int64_t padding_value)
      : gpu(op, "x_words", x_words),
        weight(gpu.weight(op, weight_bytes, conv_weight_shape(op, weight_shape, groups))),
        arguments(op, x_words, weight.shape, stride, padding, dilation, padding_value) {}

  const Gpu& place() const { return gpu; }
  const std::vector<int64_t>& out_sizes() const { return arguments.out_sizes; }

  Status operator()(const Epilogue& epilogue) const {
    return cuda::bconv2d(word_pointer(arguments.x), arguments.shape, weight, epilogue, gpu.device(), gpu.stream());
  }

  Gpu gpu;
  cuda::DeviceWeight weight;
  Conv2dArguments arguments;
};

}  // namespace

void register_bconv2d(StableLibrary& library) { register_product<Convolution>(library); }

}  // namespace stompp::binding
