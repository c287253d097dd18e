#include "core/bgemm.h"

#include "torch/tensors.h"

namespace stompp::binding {
namespace {

// The product's arguments, checked, and what every epilogue needs of them.
struct Product {
  Product(const char* op, const Tensor& a_words, const Tensor& weight_bytes, int64_t N, int64_t K)
      : a(words_of(op, "a_words", a_words)),
        weight(weight_argument(op, weight_bytes, {N, K, 1, 1, 1})),
        out_sizes(sizes_of(a_words)) {
    check(a.dim() >= 1 && a.size(a.dim() - 1) == words_for(K), op, ": a_words has shape ", ShapeOf{a},
          ", whose last dimension must be ceil(K / 32) for K = ", K);
    out_sizes.back() = N;
  }

  Status operator()(const Epilogue& epilogue) const {
    return bgemm(word_pointer(a), a.numel() / a.size(a.dim() - 1), weight.view, epilogue, torch_pool());
  }

  Tensor a;
  WeightArgument weight;
  std::vector<int64_t> out_sizes;
};

Tensor bgemm_cpu(const Tensor& a_words, const Tensor& weight, int64_t N, int64_t K) {
  const Product product("bgemm", a_words, weight, N, K);
  return with_int32(product.out_sizes, product);
}

Tensor bgemm_affine_cpu(const Tensor& a_words, const Tensor& weight, int64_t N, int64_t K, const Tensor& scale,
                        const Tensor& bias, const std::optional<Tensor>& residual, ScalarType dtype) {
  const Product product("bgemm_affine", a_words, weight, N, K);
  return with_affine("bgemm_affine", product.out_sizes, {scale, bias, residual, dtype}, product);
}

Tensor bgemm_threshold_cpu(const Tensor& a_words, const Tensor& weight, int64_t N, int64_t K, const Tensor& thresholds,
                           const Tensor& flip_words, const std::optional<Tensor>& residual_words) {
  const Product product("bgemm_threshold", a_words, weight, N, K);
  return with_threshold("bgemm_threshold", product.out_sizes, {thresholds, flip_words, residual_words}, product);
}

}  // namespace
}  // namespace stompp::binding

STABLE_TORCH_LIBRARY_IMPL(stompp, CPU, m) {
  using namespace stompp::binding;
  m.impl("bgemm", TORCH_BOX(&bgemm_cpu));
  m.impl("bgemm_affine", TORCH_BOX(&bgemm_affine_cpu));
  m.impl("bgemm_threshold", TORCH_BOX(&bgemm_threshold_cpu));
}
