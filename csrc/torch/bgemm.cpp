#include "core/product/bgemm.h"

#include "torch/host.h"
#include "torch/product_ops.h"

namespace stompp::binding {
namespace {

struct MatrixProduct {
  using Op = Bgemm;

  MatrixProduct(const char* op, const Tensor& a_words, const Tensor& weight_bytes, int64_t N, int64_t K)
      : weight(weight_argument(op, weight_bytes, {N, K, 1, 1, 1})), arguments(op, a_words, N, K) {}

  static Host place() { return {}; }
  const std::vector<int64_t>& out_sizes() const { return arguments.out_sizes; }

  Status operator()(const Epilogue& epilogue) const {
    return bgemm(word_pointer(arguments.a), arguments.rows(), weight.view, epilogue, torch_pool());
  }

  WeightArgument weight;
  MatrixArguments arguments;
};

}  // namespace
}  // namespace stompp::binding

STABLE_TORCH_LIBRARY_IMPL(stompp, CPU, m) {
  using namespace stompp::binding;
  register_product<MatrixProduct>(m);
}
