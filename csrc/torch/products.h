// The binary products: their ops in torch.ops.stompp, and their arguments but for the weight's bytes, checked, on any
// device.
#pragma once

#include <array>

#include "core/product/bconv2d.h"
#include "torch/tensors.h"

namespace stompp::binding {

// The ops of one product, named by their epilogue, and what stands before the epilogue's operands in their schemas.
struct ProductOp {
  const char *int32, *affine, *affine_signs, *threshold;
  const char* schema;
};

template <class... Types>
struct Arguments;

struct Bgemm {
  static constexpr ProductOp kOp = {"bgemm", "bgemm_affine", "bgemm_affine_signs", "bgemm_threshold",
                                    "Tensor a_words, Tensor weight, int N, int K"};
  using Own = Arguments<const Tensor&, const Tensor&, int64_t, int64_t>;
};

struct Bconv2d {
  static constexpr ProductOp kOp = {
      "bconv2d", "bconv2d_affine", "bconv2d_affine_signs", "bconv2d_threshold",
      "Tensor x_words, Tensor weight, int[] weight_shape, int[2] stride, int[2] padding, int[2] dilation, int groups, "
      "int padding_value"};
  using Own = Arguments<const Tensor&, const Tensor&, Ints, Ints, Ints, Ints, int64_t, int64_t>;
};

struct MatrixArguments {
  // The weight's shape {N, K, 1, 1, 1} has been checked.
  MatrixArguments(const char* op, const Tensor& a_words, int64_t N, int64_t K)
      : a(words_of(op, "a_words", a_words)), out_sizes(sizes_of(a_words)) {
    check(a.dim() >= 1 && a.size(a.dim() - 1) == words_for(K), op, ": a_words has shape ", ShapeOf{a},
          ", whose last dimension must be ceil(K / 32) for K = ", K);
    out_sizes.back() = N;
  }

  int64_t rows() const { return a.numel() / a.size(a.dim() - 1); }

  Tensor a;
  std::vector<int64_t> out_sizes;
};

inline WeightShape conv_weight_shape(const char* op, Ints shape, int64_t groups) {
  check(shape.size() == 4, op, ": weight_shape must be [O, I/groups, kh, kw]");
  return {shape[0], shape[1], shape[2], shape[3], groups};
}

// The shape of a convolution of `images`, {N, H, W, C}.
inline Conv2dShape conv2d_shape(const char* op, const std::array<int64_t, 4>& images, Ints stride, Ints padding,
                                Ints dilation, int64_t padding_value) {
  check(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, op,
        ": stride, padding and dilation need two values each");
  const auto [batch, height, width, channels] = images;
  return {batch,
          height,
          width,
          channels,
          stride[0],
          stride[1],
          padding[0],
          padding[1],
          dilation[0],
          dilation[1],
          static_cast<int>(padding_value)};
}

struct Conv2dArguments {
  // `weight` has been checked.
  Conv2dArguments(const char* op, const Tensor& x_words, const WeightShape& weight, Ints stride, Ints padding,
                  Ints dilation, int64_t padding_value)
      : x(words_of(op, "x_words", x_words)) {
    check(x.dim() == 4, op, ": x_words must be [N, H, W, C_words], got ", ShapeOf{x});
    check(padding_value >= -1 && padding_value <= 1, op, ": padding_value must be 0, 1 or -1, got ", padding_value);
    const int64_t channels = weight.in_channels * weight.groups;
    check(x.size(3) == words_for(channels), op, ": x_words has shape ", ShapeOf{x},
          ", whose last dimension must be ceil(C / 32) for C = ", channels, " channels");
    shape = conv2d_shape(op, {x.size(0), x.size(1), x.size(2), channels}, stride, padding, dilation, padding_value);
    check(check_conv2d(shape, weight));
    out_sizes = {shape.batch, shape.out_height(weight), shape.out_width(weight), weight.out_channels};
  }

  Tensor x;
  Conv2dShape shape;
  std::vector<int64_t> out_sizes;
};

// A weight's shape argument, [N, K] or [O, I/groups, kh, kw].
inline WeightShape weight_shape(Ints shape, int64_t groups) {
  check(shape.size() == 2 || shape.size() == 4, "shape must be [N, K] or [O, I/groups, kh, kw], got ", shape.size(),
        " sizes");
  WeightShape result = {shape[0], shape[1], 1, 1, groups};
  if (shape.size() == 4) {
    result.kernel_h = shape[2];
    result.kernel_w = shape[3];
  }
  check(check_shape(result));
  return result;
}

// The sizes of a weight's portable words.
inline std::vector<int64_t> words_sizes(const WeightShape& shape, bool matrix) {
  if (matrix) return {shape.out_channels, words_for(shape.in_channels)};
  return {shape.out_channels, shape.kernel_h, shape.kernel_w, words_for(shape.in_channels)};
}

}  // namespace stompp::binding
