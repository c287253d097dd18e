#include "core/product/bgemm.h"

#include <algorithm>
#include <functional>
#include <numeric>

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

constexpr const char* kBatched = "batched_bgemm";

// a_words [..., M, words_for(K)] and b_words [..., N, words_for(K)], with the same sizes before the rows.
Tensor batched_bgemm_cpu(const Tensor& a_words, const Tensor& b_words, int64_t K) {
  const Tensor a = words_of(kBatched, "a_words", a_words), b = words_of(kBatched, "b_words", b_words);
  std::vector<int64_t> sizes = sizes_of(a), b_sizes = sizes_of(b);
  const int64_t dims = a.dim();
  check(dims >= 2 && b.dim() == dims, kBatched, ": a_words and b_words must have as many dimensions, at least 2, got ",
        ShapeOf{a}, " and ", ShapeOf{b});
  const BatchedShape shape = {std::accumulate(sizes.begin(), sizes.end() - 2, int64_t{1}, std::multiplies<>()),
                              sizes[dims - 2], b_sizes[dims - 2], K};
  check(kBatched, check_batched(shape));
  check(std::equal(sizes.begin(), sizes.end() - 2, b_sizes.begin()) && sizes.back() == words_for(K) &&
            b_sizes.back() == words_for(K),
        kBatched, ": a_words and b_words must be [..., M, ceil(K / 32)] and [..., N, ceil(K / 32)], got ", ShapeOf{a},
        " and ", ShapeOf{b}, " for K = ", K);
  sizes.back() = shape.N;
  Tensor out = new_tensor(sizes, ScalarType::Int);
  check(kBatched,
        batched_bgemm(word_pointer(a), word_pointer(b), shape, static_cast<int32_t*>(out.data_ptr()), torch_pool()));
  return out;
}

}  // namespace
}  // namespace stompp::binding

STABLE_TORCH_LIBRARY_IMPL(stompp, CPU, m) {
  using namespace stompp::binding;
  register_product<MatrixProduct>(m);
  m.impl(kBatched, TORCH_BOX(&batched_bgemm_cpu));
}
