#include "cuda/pack_weight/pack_weight.h"

#include "torch/cuda/gpu.h"
#include "torch/products.h"

namespace stompp::binding {
namespace {

Tensor pack_weight_words_cuda(const Tensor& words, Ints shape_argument, int64_t groups) {
  const char* op = "pack_weight_words";
  const Gpu gpu(op, "words", words);
  const WeightShape shape = weight_shape(shape_argument, groups);
  check_shape(op, "words", words, words_sizes(shape, shape_argument.size() == 2));
  const Tensor dense = words_of(op, "words", words);
  const std::vector<int64_t> sizes = {cuda::WeightLayout::of(shape).bytes()};
  Tensor out = gpu.empty(sizes, ScalarType::Byte);
  check(op, cuda::pack_weight(word_pointer(dense), shape, static_cast<uint32_t*>(out.data_ptr()), gpu.stream()));
  return out;
}

Tensor unpack_weight_words_cuda(const Tensor& weight, Ints shape_argument, int64_t groups) {
  const char* op = "unpack_weight_words";
  const Gpu gpu(op, "weight", weight);
  const WeightShape shape = weight_shape(shape_argument, groups);
  const cuda::DeviceWeight packed = gpu.weight(op, weight, shape);
  Tensor words = gpu.empty(words_sizes(shape, shape_argument.size() == 2), ScalarType::Int);
  check(op, cuda::unpack_weight(packed.words, shape, static_cast<uint32_t*>(words.data_ptr()), gpu.stream()));
  return words;
}

}  // namespace

void register_pack(torch::stable::detail::StableLibrary& library) {
  library.impl("pack_weight_words", TORCH_BOX(&pack_weight_words_cuda));
  library.impl("unpack_weight_words", TORCH_BOX(&unpack_weight_words_cuda));
}

}  // namespace stompp::binding
