#include "cuda/bgemm/bgemm.h"

#include "torch/cuda/gpu.h"
#include "torch/product_ops.h"

namespace stompp::binding {
namespace {

struct MatrixProduct {
  using Op = Bgemm;

  MatrixProduct(const char* op, const Tensor& a_words, const Tensor& weight_bytes, int64_t N, int64_t K)
      : gpu(op, "a_words", a_words),
        weight(gpu.weight(op, weight_bytes, {N, K, 1, 1, 1})),
        arguments(op, a_words, N, K) {}

  const Gpu& place() const { return gpu; }
  const std::vector<int64_t>& out_sizes() const { return arguments.out_sizes; }

  Status operator()(const Epilogue& epilogue) const {
    return cuda::bgemm(word_pointer(arguments.a), arguments.rows(), weight, epilogue, gpu.device(), gpu.stream());
  }

  Gpu gpu;
  cuda::DeviceWeight weight;
  MatrixArguments arguments;
};

}  // namespace

void register_bgemm(StableLibrary& library) { register_product<MatrixProduct>(library); }

}  // namespace stompp::binding
