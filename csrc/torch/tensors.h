// Checks torch's tensors, on any device, before the core gets their pointers.
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

#include "core/base/float_types.h"
#include "core/base/status.h"
#include "core/product/packed_weight.h"
#include "torch/compat.h"

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

inline void check(const char* op, const Status& status) { check(status.is_ok(), op, ": ", status.message()); }

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

// A tensor's shape in a message. It is formatted only if the message is.
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

// Spares a call through the dispatcher for what is contiguous already.
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

inline std::vector<int64_t> contiguous_strides(const std::vector<int64_t>& sizes) {
  std::vector<int64_t> strides(sizes);
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0; stride *= std::max<int64_t>(sizes[i], 1)) strides[i] = stride;
  return strides;
}

// Spares the call by name through torch's dispatcher that torch::stable::new_empty makes: small products take
// microseconds.
inline Tensor empty_strided(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType type,
                            int32_t device_type, int32_t device_index) {
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(type)), device_type, device_index, &handle));
  return Tensor(handle);
}

inline const uint32_t* word_pointer(const Tensor& tensor) { return static_cast<const uint32_t*>(tensor.data_ptr()); }

}  // namespace stompp::binding
