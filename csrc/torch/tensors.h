// Between torch's tensors and the core's pointers: checks, allocation and torch's thread pool.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/epilogue.h"
#include "core/float_types.h"
#include "core/packed_weight.h"
#include "core/parallel.h"
#include "core/status.h"
#include "torch/huge_pages.h"

namespace stompp::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = torch::headeronly::IntHeaderOnlyArrayRef;

template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline void check(const Status& status) { check(status.is_ok(), status.message()); }

inline Parallel torch_pool() {
  return {[](int64_t count, int64_t grain, Parallel::Body body, void* context) {
            torch::stable::parallel_for(0, count, grain,
                                        [=](int64_t begin, int64_t end) { body(begin, end, context); });
          },
          static_cast<int>(torch::stable::get_num_threads())};
}

inline std::optional<FloatType> float_type(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return FloatType::kFloat32;
    case ScalarType::Half:
      return FloatType::kFloat16;
    case ScalarType::BFloat16:
      return FloatType::kBFloat16;
    case ScalarType::Double:
      return FloatType::kFloat64;
    default:
      return std::nullopt;
  }
}

// float32, float16 or bfloat16: what bits are packed from and epilogues write.
inline FloatType short_float_type(const char* op, const char* argument, ScalarType type) {
  const std::optional<FloatType> found = float_type(type);
  check(found.has_value() && *found != FloatType::kFloat64, op, ": ", argument,
        " must be float32, float16 or bfloat16");
  return *found;
}

inline void check_dtype(const char* op, const char* argument, const Tensor& tensor, ScalarType wanted,
                        const char* name) {
  check(tensor.scalar_type() == wanted, op, ": ", argument, " must be ", name);
}

inline std::vector<int64_t> sizes_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end());
}

// A tensor's shape in a message; formatted only where the message is.
struct ShapeOf {
  const Tensor& tensor;
};

inline std::ostream& operator<<(std::ostream& out, const ShapeOf& shape) {
  out << "[";
  for (int64_t i = 0; i < shape.tensor.dim(); ++i) out << (i == 0 ? "" : ", ") << shape.tensor.size(i);
  return out << "]";
}

inline void check_shape(const char* op, const char* argument, const Tensor& tensor,
                        const std::vector<int64_t>& wanted) {
  if (sizes_of(tensor) == wanted) return;
  std::ostringstream out;
  for (size_t i = 0; i < wanted.size(); ++i) out << (i == 0 ? "" : ", ") << wanted[i];
  check(false, op, ": ", argument, " has shape ", ShapeOf{tensor}, ", expected [", out.str(), "]");
}

// Without the cost of a call through the dispatcher for what is contiguous already.
inline Tensor row_major(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Contiguous, and aligned for 4-byte elements: a view of foreign memory (torch.frombuffer) may begin at any byte.
inline Tensor dense_of(const Tensor& tensor) {
  const Tensor dense = row_major(tensor);
  return reinterpret_cast<uintptr_t>(dense.data_ptr()) % alignof(int32_t) == 0 ? dense : torch::stable::clone(dense);
}

// A contiguous int32 tensor of packed words.
inline Tensor words_of(const char* op, const char* argument, const Tensor& tensor) {
  check_dtype(op, argument, tensor, ScalarType::Int, "int32");
  return dense_of(tensor);
}

inline const uint32_t* word_pointer(const Tensor& tensor) { return static_cast<const uint32_t*>(tensor.data_ptr()); }

// The first touch of a large result in pages of 4 KB takes longer than computing it.
inline Tensor with_huge_pages(Tensor fresh) {
  advise_huge_pages(fresh.data_ptr(), fresh.numel() * static_cast<int64_t>(fresh.element_size()));
  return fresh;
}

// A CPU tensor of undefined values, contiguous without strides. Small products take microseconds: no call by name
// through torch's dispatcher, as torch::stable::new_empty makes.
inline Tensor new_tensor(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType type) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), aoti_torch_device_type_cpu(), 0, &handle));
  return with_huge_pages(Tensor(handle));
}

inline Tensor new_tensor(const std::vector<int64_t>& sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::max<int64_t>(sizes[i], 1);
  return new_tensor(sizes, strides, type);
}

// A weight argument: packed bytes and the shape they must have been packed for.
struct WeightArgument {
  Tensor data;  // keeps the bytes alive
  PackedWeight view;
};

WeightArgument weight_argument(const char* op, const Tensor& weight, const WeightShape& expected);

// Epilogue arguments, checked. `out_sizes` is the shape that an unpacked result would have, [..., N].
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
template <class Compute>
Tensor with_int32(const std::vector<int64_t>& out_sizes, const Compute& compute) {
  Tensor out = new_tensor(out_sizes, ScalarType::Int);
  Epilogue epilogue;
  epilogue.N = out_sizes.back();
  epilogue.out = out.data_ptr();
  check(compute(epilogue));
  return out;
}

template <class Compute>
Tensor with_affine(const char* op, const std::vector<int64_t>& out_sizes, const AffineArguments& args,
                   const Compute& compute) {
  const int64_t N = out_sizes.back();
  Epilogue epilogue;
  epilogue.kind = Epilogue::Kind::kAffine;
  epilogue.N = N;
  epilogue.out_type = short_float_type(op, "dtype", args.dtype);
  check_dtype(op, "scale", args.scale, ScalarType::Float, "float32");
  check_dtype(op, "bias", args.bias, ScalarType::Float, "float32");
  check_shape(op, "scale", args.scale, {N});
  check_shape(op, "bias", args.bias, {N});
  const Tensor scale = dense_of(args.scale), bias = dense_of(args.bias);
  epilogue.scale = static_cast<const float*>(scale.data_ptr());
  epilogue.bias = static_cast<const float*>(bias.data_ptr());
  std::optional<Tensor> residual;
  if (args.residual.has_value()) {
    check_shape(op, "residual", *args.residual, out_sizes);
    epilogue.residual_type = short_float_type(op, "residual", args.residual->scalar_type());
    residual = row_major(*args.residual);
    epilogue.residual = residual->data_ptr();
  }
  Tensor out = new_tensor(out_sizes, args.dtype);
  epilogue.out = out.data_ptr();
  check(compute(epilogue));
  return out;
}

template <class Compute>
Tensor with_threshold(const char* op, std::vector<int64_t> out_sizes, const ThresholdArguments& args,
                      const Compute& compute) {
  const int64_t N = out_sizes.back();
  out_sizes.back() = words_for(N);
  const bool has_residual = args.residual_words.has_value();
  Epilogue epilogue;
  epilogue.kind = Epilogue::Kind::kThreshold;
  epilogue.N = N;
  check_dtype(op, "thresholds", args.thresholds, ScalarType::Int, "int32");
  check_shape(op, "thresholds", args.thresholds, {has_residual ? 2 : 1, N});
  check_shape(op, "flip_words", args.flip_words, {words_for(N)});
  const Tensor thresholds = dense_of(args.thresholds);
  const Tensor flip_words = words_of(op, "flip_words", args.flip_words);
  epilogue.thresholds = static_cast<const int32_t*>(thresholds.data_ptr());
  epilogue.flip_words = word_pointer(flip_words);
  std::optional<Tensor> residual_words;
  if (has_residual) {
    check_shape(op, "residual_words", *args.residual_words, out_sizes);
    residual_words = words_of(op, "residual_words", *args.residual_words);
    epilogue.residual_words = word_pointer(*residual_words);
  }
  Tensor out = new_tensor(out_sizes, ScalarType::Int);
  epilogue.out = out.data_ptr();
  check(compute(epilogue));
  return out;
}

}  // namespace stompp::binding
