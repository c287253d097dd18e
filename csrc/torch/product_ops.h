// A binary product in torch.ops.stompp: four ops that differ in their epilogue. Here they get their schemas and their
// kernels, the same for every product and device.
//
// A Product is one call of one, on one device. It needs
//
//   using Op = ...;                              what describes the product, as Bgemm in products.h does
//   Product(const char* op, arguments...);       checks the arguments that are the product's own; `op` is for errors
//   const Place& place() const;                  of epilogues.h
//   const std::vector<int64_t>& out_sizes() const;
//   Status operator()(const Epilogue&) const;    runs it
#pragma once

#include <string>

#include "torch/epilogues.h"
#include "torch/products.h"

namespace stompp::binding {

using torch::stable::detail::StableLibrary;

// The operands of an epilogue follow the product's own arguments.
inline void define_product(StableLibrary& library, const ProductOp& op) {
  const std::string own = op.schema;
  const std::string affine = own +
                             ", Tensor scale, Tensor bias, Tensor? residual, Tensor? residual_scale, "
                             "Tensor? residual_bias, bool fused";
  const auto define = [&](const char* name, const std::string& arguments, const char* result) {
    library.def((std::string(name) + "(" + arguments + ") -> " + result).c_str());
  };
  define(op.int32, own, "Tensor");
  define(op.affine, affine + ", ScalarType dtype, Tensor? rprelu=None", "Tensor");
  define(op.affine_signs, affine + ", bool floats, Tensor? rprelu=None, Tensor? limits=None", "(Tensor, Tensor)");
  define(op.threshold, own + ", Tensor thresholds, Tensor flip_words, Tensor? residual_words", "Tensor");
}

template <class Product, class Own = typename Product::Op::Own>
struct Kernels;

template <class Product, class... Own>
struct Kernels<Product, Arguments<Own...>> {
  static Tensor int32(Own... own) {
    constexpr const char* op = Product::Op::kOp.int32;
    const Product product(op, own...);
    return with_int32(op, product.place(), product.out_sizes(), product);
  }

  static Tensor affine(Own... own, const Tensor& scale, const Tensor& bias, const std::optional<Tensor>& residual,
                       const std::optional<Tensor>& residual_scale, const std::optional<Tensor>& residual_bias,
                       bool fused, ScalarType dtype, const std::optional<Tensor>& rprelu) {
    constexpr const char* op = Product::Op::kOp.affine;
    const Product product(op, own...);
    return with_affine(op, product.place(), product.out_sizes(),
                       {scale, bias, residual, residual_scale, residual_bias, fused, rprelu}, dtype, product);
  }

  static std::tuple<Tensor, Tensor> affine_signs(Own... own, const Tensor& scale, const Tensor& bias,
                                                 const std::optional<Tensor>& residual,
                                                 const std::optional<Tensor>& residual_scale,
                                                 const std::optional<Tensor>& residual_bias, bool fused, bool floats,
                                                 const std::optional<Tensor>& rprelu,
                                                 const std::optional<Tensor>& limits) {
    constexpr const char* op = Product::Op::kOp.affine_signs;
    const Product product(op, own...);
    return with_affine_signs(op, product.place(), product.out_sizes(),
                             {scale, bias, residual, residual_scale, residual_bias, fused, rprelu}, limits, floats,
                             product);
  }

  static Tensor threshold(Own... own, const Tensor& thresholds, const Tensor& flip_words,
                          const std::optional<Tensor>& residual_words) {
    constexpr const char* op = Product::Op::kOp.threshold;
    const Product product(op, own...);
    return with_threshold(op, product.place(), product.out_sizes(), {thresholds, flip_words, residual_words}, product);
  }
};

template <class Product>
void register_product(StableLibrary& library) {
  const ProductOp& op = Product::Op::kOp;
  library.impl(op.int32, TORCH_BOX(&Kernels<Product>::int32));
  library.impl(op.affine, TORCH_BOX(&Kernels<Product>::affine));
  library.impl(op.affine_signs, TORCH_BOX(&Kernels<Product>::affine_signs));
  library.impl(op.threshold, TORCH_BOX(&Kernels<Product>::threshold));
}

}  // namespace stompp::binding
