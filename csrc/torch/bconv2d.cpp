#include "core/product/bconv2d.h"

#include "torch/host.h"
#include "torch/product_ops.h"

namespace stompp::binding {
namespace {

struct Convolution {
  using Op = Bconv2d;

  Convolution(const char* op, const Tensor& x_words, const Tensor& weight_bytes, Ints weight_shape, Ints stride,
              Ints padding, Ints dilation, int64_t groups, int64_t padding_value)
      : weight(weight_argument(op, weight_bytes, conv_weight_shape(op, weight_shape, groups))),
        arguments(op, x_words, weight.view.shape, stride, padding, dilation, padding_value) {}

  static Host place() { return {}; }
  const std::vector<int64_t>& out_sizes() const { return arguments.out_sizes; }

  Status operator()(const Epilogue& epilogue) const {
    return bconv2d(word_pointer(arguments.x), arguments.shape, weight.view, epilogue, torch_pool());
  }

  WeightArgument weight;
  Conv2dArguments arguments;
};

}  // namespace
}  // namespace stompp::binding

STABLE_TORCH_LIBRARY_IMPL(stompp, CPU, m) {
  using namespace stompp::binding;
  register_product<Convolution>(m);
}
