#include "core/product/bgemm.h"

#include "torch/epilogues.h"
#include "torch/host.h"
#include "torch/products.h"

namespace stompp::binding {
namespace {

struct Product {
  Product(const char* op, const Tensor& a_words, const Tensor& weight_bytes, int64_t N, int64_t K)
      : weight(weight_argument(op, weight_bytes, {N, K, 1, 1, 1})), arguments(op, a_words, N, K) {}

  Status operator()(const Epilogue& epilogue) const {
    return bgemm(word_pointer(arguments.a), arguments.rows(), weight.view, epilogue, torch_pool());
  }

  WeightArgument weight;
  MatrixArguments arguments;
};

Tensor bgemm_cpu(const Tensor& a_words, const Tensor& weight, int64_t N, int64_t K) {
  const Product product("bgemm", a_words, weight, N, K);
  return with_int32("bgemm", Host(), product.arguments.out_sizes, product);
}

Tensor bgemm_affine_cpu(const Tensor& a_words, const Tensor& weight, int64_t N, int64_t K, const Tensor& scale,
                        const Tensor& bias, const std::optional<Tensor>& residual,
                        const std::optional<Tensor>& residual_scale, const std::optional<Tensor>& residual_bias,
                        bool fused, ScalarType dtype) {
  const Product product("bgemm_affine", a_words, weight, N, K);
  return with_affine("bgemm_affine", Host(), product.arguments.out_sizes,
                     {scale, bias, residual, residual_scale, residual_bias, fused}, dtype, product);
}

std::tuple<Tensor, Tensor> bgemm_affine_signs_cpu(const Tensor& a_words, const Tensor& weight, int64_t N, int64_t K,
                                                  const Tensor& scale, const Tensor& bias,
                                                  const std::optional<Tensor>& residual,
                                                  const std::optional<Tensor>& residual_scale,
                                                  const std::optional<Tensor>& residual_bias, bool fused, bool floats) {
  const Product product("bgemm_affine_signs", a_words, weight, N, K);
  return with_affine_signs("bgemm_affine_signs", Host(), product.arguments.out_sizes,
                           {scale, bias, residual, residual_scale, residual_bias, fused}, floats, product);
}

Tensor bgemm_threshold_cpu(const Tensor& a_words, const Tensor& weight, int64_t N, int64_t K, const Tensor& thresholds,
                           const Tensor& flip_words, const std::optional<Tensor>& residual_words) {
  const Product product("bgemm_threshold", a_words, weight, N, K);
  return with_threshold("bgemm_threshold", Host(), product.arguments.out_sizes,
                        {thresholds, flip_words, residual_words}, product);
}

}  // namespace
}  // namespace stompp::binding

STABLE_TORCH_LIBRARY_IMPL(stompp, CPU, m) {
  using namespace stompp::binding;
  m.impl("bgemm", TORCH_BOX(&bgemm_cpu));
  m.impl("bgemm_affine", TORCH_BOX(&bgemm_affine_cpu));
  m.impl("bgemm_affine_signs", TORCH_BOX(&bgemm_affine_signs_cpu));
  m.impl("bgemm_threshold", TORCH_BOX(&bgemm_threshold_cpu));
}
