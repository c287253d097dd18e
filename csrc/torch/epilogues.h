// Epilogue arguments, checked, and the result that they are computed into.
//
// A Place says where the tensors must be: place.check_here(op, argument, tensor) refuses other devices, and
// place.empty(sizes, type) makes a result.
#pragma once

#include "core/epilogue.h"
#include "torch/tensors.h"

namespace stompp::binding {

// `out_sizes` below is the shape that an unpacked result would have, [..., N].
struct AffineArguments {
  const Tensor& scale;
  const Tensor& bias;
  const std::optional<Tensor>& residual;
  ScalarType dtype;
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

template <class Place, class Compute>
Tensor with_affine(const char* op, const Place& place, const std::vector<int64_t>& out_sizes,
                   const AffineArguments& args, const Compute& compute) {
  const int64_t N = out_sizes.back();
  Epilogue epilogue;
  epilogue.kind = Epilogue::Kind::kAffine;
  epilogue.N = N;
  epilogue.out_type = short_float_type(op, "dtype", args.dtype);
  check_dtype(op, "scale", args.scale, ScalarType::Float, "float32");
  check_dtype(op, "bias", args.bias, ScalarType::Float, "float32");
  check_shape(op, "scale", args.scale, {N});
  check_shape(op, "bias", args.bias, {N});
  place.check_here(op, "scale", args.scale);
  place.check_here(op, "bias", args.bias);
  const Tensor scale = dense_of(args.scale), bias = dense_of(args.bias);
  epilogue.scale = static_cast<const float*>(scale.data_ptr());
  epilogue.bias = static_cast<const float*>(bias.data_ptr());
  std::optional<Tensor> residual;
  if (args.residual.has_value()) {
    check_shape(op, "residual", *args.residual, out_sizes);
    place.check_here(op, "residual", *args.residual);
    epilogue.residual_type = short_float_type(op, "residual", args.residual->scalar_type());
    residual = row_major(*args.residual);
    epilogue.residual = residual->data_ptr();
  }
  Tensor out = place.empty(out_sizes, args.dtype);
  epilogue.out = out.data_ptr();
  check(op, compute(epilogue));
  return out;
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
