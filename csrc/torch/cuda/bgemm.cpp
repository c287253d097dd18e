#include "cuda/bgemm/bgemm.h"

#include "torch/cuda/gpu.h"
#include "torch/epilogues.h"
#include "torch/products.h"

namespace stompp::binding {
namespace {

struct Product {
  Product(const char* op, const Tensor& a_words, const Tensor& weight_bytes, int64_t N, int64_t K)
      : gpu(op, "a_words", a_words),
        weight(gpu.weight(op, weight_bytes, {N, K, 1, 1, 1})),
        arguments(op, a_words, N, K) {}

  Status operator()(const Epilogue& epilogue) const {
    return cuda::bgemm(word_pointer(arguments.a), arguments.rows(), weight, epilogue, gpu.device(), gpu.stream());
  }

  Gpu gpu;
  cuda::DeviceWeight weight;
  MatrixArguments arguments;
};

Tensor bgemm_cuda(const Tensor& a_words, const Tensor& weight, int64_t N, int64_t K) {
  const Product product("bgemm", a_words, weight, N, K);
  return with_int32("bgemm", product.gpu, product.arguments.out_sizes, product);
}

Tensor bgemm_affine_cuda(const Tensor& a_words, const Tensor& weight, int64_t N, int64_t K, const Tensor& scale,
                         const Tensor& bias, const std::optional<Tensor>& residual,
                         const std::optional<Tensor>& residual_scale, const std::optional<Tensor>& residual_bias,
                         bool fused, ScalarType dtype) {
  const Product product("bgemm_affine", a_words, weight, N, K);
  return with_affine("bgemm_affine", product.gpu, product.arguments.out_sizes,
                     {scale, bias, residual, residual_scale, residual_bias, fused}, dtype, product);
}

Tensor bgemm_threshold_cuda(const Tensor& a_words, const Tensor& weight, int64_t N, int64_t K, const Tensor& thresholds,
                            const Tensor& flip_words, const std::optional<Tensor>& residual_words) {
  const Product product("bgemm_threshold", a_words, weight, N, K);
  return with_threshold("bgemm_threshold", product.gpu, product.arguments.out_sizes,
                        {thresholds, flip_words, residual_words}, product);
}

}  // namespace

void register_bgemm(torch::stable::detail::StableLibrary& library) {
  library.impl("bgemm", TORCH_BOX(&bgemm_cuda));
  library.impl("bgemm_affine", TORCH_BOX(&bgemm_affine_cuda));
  library.impl("bgemm_threshold", TORCH_BOX(&bgemm_threshold_cuda));
}

}  // namespace stompp::binding
