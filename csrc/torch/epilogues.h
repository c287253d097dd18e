// Checks the operands of epilogues, and makes the tensors that they write.
//
// A Place says where the tensors must be: place.check_here(op, argument, tensor) refuses other devices, and
// place.empty(sizes, type) makes a result.
#pragma once

#include "core/product/epilogue.h"
#include "torch/tensors.h"

namespace stompp::binding {

// Below, `out_sizes` is the shape of the sums, [..., N].
struct AffineArguments {
  const Tensor& scale;
  const Tensor& bias;
  const std::optional<Tensor>& residual;
  const std::optional<Tensor>& residual_scale;
  const std::optional<Tensor>& residual_bias;
  bool fused;
  const std::optional<Tensor>& rprelu;
};

struct ThresholdArguments {
  const Tensor& thresholds;
  const Tensor& flip_words;
  const std::optional<Tensor>& residual_words;
};

// Runs compute(Epilogue) with an epilogue that writes a fresh tensor, and returns that tensor.
template <class Place, class Compute>
Tensor with_int32(const char* op, const Place& place, const std::vector<int64_t>& out_sizes, const Compute& compute) {
  Tensor out = place.empty(out_sizes, ScalarType::Int);
  Epilogue epilogue;
  epilogue.N = out_sizes.back();
  epilogue.out = out.data_ptr();
  check(op, compute(epilogue));
  return out;
}

// An affine epilogue without what it writes, and the tensors that it reads.
class AffineInputs {
 public:
  template <class Place>
  AffineInputs(const char* op, const Place& place, const std::vector<int64_t>& out_sizes, const AffineArguments& args)
      : scale_(per_output(op, "scale", place, args.scale, out_sizes.back())),
        bias_(per_output(op, "bias", place, args.bias, out_sizes.back())) {
    epilogue.kind = Epilogue::Kind::kAffine;
    epilogue.N = out_sizes.back();
    epilogue.fused = args.fused;
    epilogue.scale = static_cast<const float*>(scale_.data_ptr());
    epilogue.bias = static_cast<const float*>(bias_.data_ptr());
    if (args.rprelu.has_value()) epilogue.rprelu = keep_rows(op, "rprelu", place, *args.rprelu, 3, &rprelu_);
    if (!args.residual.has_value()) return;
    check_shape(op, "residual", *args.residual, out_sizes);
    place.check_here(op, "residual", *args.residual);
    epilogue.residual_type = short_float_type(op, "residual", args.residual->scalar_type());
    residual_ = row_major(*args.residual);
    epilogue.residual = residual_->data_ptr();
    check(args.residual_scale.has_value() == args.residual_bias.has_value(), op,
          ": residual_scale and residual_bias must be given both or neither");
    if (!args.residual_scale.has_value()) return;
    residual_scale_ = per_output(op, "residual_scale", place, *args.residual_scale, out_sizes.back());
    residual_bias_ = per_output(op, "residual_bias", place, *args.residual_bias, out_sizes.back());
    epilogue.residual_scale = static_cast<const float*>(residual_scale_->data_ptr());
    epilogue.residual_bias = static_cast<const float*>(residual_bias_->data_ptr());
  }

  // Lets signs be decided by limits [2][N].
  template <class Place>
  void set_limits(const char* op, const Place& place, const Tensor& limits) {
    epilogue.limits = keep_rows(op, "limits", place, limits, 2, &limits_);
  }

  Epilogue epilogue;

 private:
  template <class Place>
  static Tensor per_output(const char* op, const char* name, const Place& place, const Tensor& values, int64_t N) {
    check_dtype(op, name, values, ScalarType::Float, "float32");
    check_shape(op, name, values, {N});
    place.check_here(op, name, values);
    return dense_of(values);
  }

  // Checks constants [rows][N], and keeps them alive while the product runs.
  template <class Place>
  const float* keep_rows(const char* op, const char* name, const Place& place, const Tensor& values, int64_t rows,
                         std::optional<Tensor>* kept) const {
    check_dtype(op, name, values, ScalarType::Float, "float32");
    check_shape(op, name, values, {rows, epilogue.N});
    place.check_here(op, name, values);
    *kept = row_major(values);
    return static_cast<const float*>((*kept)->data_ptr());
  }

  Tensor scale_, bias_;
  std::optional<Tensor> residual_, residual_scale_, residual_bias_, rprelu_, limits_;
};

template <class Place, class Compute>
Tensor with_affine(const char* op, const Place& place, const std::vector<int64_t>& out_sizes,
                   const AffineArguments& args, ScalarType dtype, const Compute& compute) {
  AffineInputs inputs(op, place, out_sizes, args);
  inputs.epilogue.out_type = short_float_type(op, "dtype", dtype);
  Tensor out = place.empty(out_sizes, dtype);
  inputs.epilogue.out = out.data_ptr();
  check(op, compute(inputs.epilogue));
  return out;
}

// Computes the same in fp32 and its sign bits. The first tensor is empty unless the floats are wanted.
template <class Place, class Compute>
std::tuple<Tensor, Tensor> with_affine_signs(const char* op, const Place& place, const std::vector<int64_t>& out_sizes,
                                             const AffineArguments& args, const std::optional<Tensor>& limits,
                                             bool floats, const Compute& compute) {
  AffineInputs inputs(op, place, out_sizes, args);
  if (limits.has_value()) inputs.set_limits(op, place, *limits);
  std::vector<int64_t> words_sizes = out_sizes;
  words_sizes.back() = words_for(out_sizes.back());
  Tensor words = place.empty(words_sizes, ScalarType::Int);
  inputs.epilogue.sign_words = static_cast<uint32_t*>(words.data_ptr());
  Tensor out = place.empty(floats ? out_sizes : std::vector<int64_t>{0}, ScalarType::Float);
  if (floats) inputs.epilogue.out = out.data_ptr();
  check(op, compute(inputs.epilogue));
  return {out, words};
}

template <class Place, class Compute>
Tensor with_threshold(const char* op, const Place& place, std::vector<int64_t> out_sizes,
                      const ThresholdArguments& args, const Compute& compute) {
  const int64_t N = out_sizes.back();
  out_sizes.back() = words_for(N);
  const bool has_residual = args.residual_words.has_value();
  Epilogue epilogue;
  epilogue.kind = Epilogue::Kind::kThreshold;
  epilogue.N = N;
  check_dtype(op, "thresholds", args.thresholds, ScalarType::Int, "int32");
  check_shape(op, "thresholds", args.thresholds, {has_residual ? 2 : 1, N});
  check_shape(op, "flip_words", args.flip_words, {words_for(N)});
  place.check_here(op, "thresholds", args.thresholds);
  place.check_here(op, "flip_words", args.flip_words);
  const Tensor thresholds = dense_of(args.thresholds);
  const Tensor flip_words = words_of(op, "flip_words", args.flip_words);
  epilogue.thresholds = static_cast<const int32_t*>(thresholds.data_ptr());
  epilogue.flip_words = word_pointer(flip_words);
  std::optional<Tensor> residual_words;
  if (has_residual) {
    check_shape(op, "residual_words", *args.residual_words, out_sizes);
    place.check_here(op, "residual_words", *args.residual_words);
    residual_words = words_of(op, "residual_words", *args.residual_words);
    epilogue.residual_words = word_pointer(*residual_words);
  }
  Tensor out = place.empty(out_sizes, ScalarType::Int);
  epilogue.out = out.data_ptr();
  check(op, compute(epilogue));
  return out;
}

}  // namespace stompp::binding
