// The schemas of torch.ops.stompp. stompp_kernels/ops/schemas.py repeats them for an installation without this library;
// a test compares the two.
#include "torch/product_ops.h"

STABLE_TORCH_LIBRARY(stompp, m) {
  m.def("pack_signs(Tensor x) -> Tensor");
  m.def("pack_outside(Tensor x, Tensor low, Tensor high) -> Tensor");
  m.def("unpack_signs(Tensor words, int K, ScalarType dtype) -> Tensor");
  m.def("pack_weight(Tensor w) -> Tensor");
  m.def("pack_conv_weight(Tensor w, int groups) -> Tensor");
  m.def("pack_weight_words(Tensor words, int[] shape, int groups) -> Tensor");
  m.def("unpack_weight_words(Tensor weight, int[] shape, int groups) -> Tensor");
  stompp::binding::define_product(m, stompp::binding::Bgemm::kOp);
  m.def("batched_bgemm(Tensor a_words, Tensor b_words, SymInt K) -> Tensor");
  stompp::binding::define_product(m, stompp::binding::Bconv2d::kOp);
  m.def(
      "max_pool2d_signs(Tensor x_words, int[2] kernel, int[2] stride, int[2] padding, int[2] dilation, "
      "bool ceil_mode) -> Tensor");
  m.def("pack_binary_weight_words(Tensor words, int[] shape, int groups) -> Tensor");
  m.def("unpack_binary_weight_words(Tensor weight, int[] shape, int groups) -> Tensor");
  m.def("linear_binary_weight(Tensor x, Tensor weight, int N, int K, Tensor scale, Tensor? bias) -> Tensor");
  m.def(
      "conv2d_binary_weight(Tensor x, Tensor weight, int[] weight_shape, int[2] stride, int[2] padding, "
      "int[2] dilation, int groups, Tensor scale, Tensor? bias) -> Tensor");
  m.def(
      "conv2d_float(Tensor x, Tensor weight, int[] weight_shape, int[2] stride, int[2] padding, int[2] dilation, "
      "Tensor? scale, Tensor? bias, bool fused) -> Tensor");
  m.def(
      "conv2d_float_signs(Tensor x, Tensor weight, int[] weight_shape, int[2] stride, int[2] padding, "
      "int[2] dilation, Tensor low, Tensor high) -> Tensor");
  m.def("progressive(Tensor u, Tensor? mask_words, str surrogate, bool batch_shared) -> Tensor");
  m.def("progressive_gated(Tensor u, Tensor? mask_words, str surrogate, bool batch_shared) -> (Tensor, Tensor)");
  m.def("progressive_drawn(Tensor u, Tensor draw, str surrogate) -> (Tensor, Tensor)");
  m.def("progressive_gate_backward(Tensor grad, Tensor gate, SymInt[] strides, bool batch_shared) -> Tensor");
  m.def("progressive_backward(Tensor grad, Tensor u, Tensor? mask_words, str surrogate, bool batch_shared) -> Tensor");
  m.def("refresh_mask_(Tensor(a!) mask_words, int n, float p, float r, int seed, int tensor_id, int step) -> ()");
}
