// Tensors on an NVIDIA GPU: one device for all arguments of an op, and what a launch there must know.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include "cuda/device.h"
#include "cuda/product/product.h"
#include "torch/tensors.h"

namespace stompp::binding {

// A tensor's device in a message.
struct DeviceOf {
  const Tensor& tensor;
};

inline std::ostream& operator<<(std::ostream& out, const DeviceOf& device) {
  if (device.tensor.is_cpu()) return out << "cpu";
  return device.tensor.is_cuda() ? out << "cuda:" << static_cast<int>(device.tensor.get_device()) : out << "elsewhere";
}

// Whether this torch has libtorch_cuda, which knows the current stream.
bool torch_has_cuda();

// What cuda/device.h wants of a device, asked of the driver once.
cuda::Device device_at(const char* op, int index);

// The Place of epilogues.h: the GPU that an op runs on, which is the current one as long as this lives. Memory comes
// from torch's allocator alone and nothing waits for the device, so that a CUDA graph can capture an op.
class Gpu {
 public:
  // The device of the op's first argument.
  Gpu(const char* op, const char* argument, const Tensor& tensor);

  void check_here(const char* op, const char* argument, const Tensor& tensor) const {
    check(tensor.is_cuda() && tensor.get_device() == index_, op, ": ", argument, " is on ", DeviceOf{tensor}, " and ",
          first_, " on cuda:", index_, ", but all tensors must be on one device");
  }

  Tensor empty(const std::vector<int64_t>& sizes, ScalarType type) const {
    return empty_strided(sizes, contiguous_strides(sizes), type, aoti_torch_device_type_cuda(), index_);
  }

  // The packed bytes, which have no header: to read one would wait for the device.
  cuda::DeviceWeight weight(const char* op, const Tensor& weight, const WeightShape& shape) const;

  const cuda::Device& device() const { return device_; }
  cuda::Stream stream() const { return stream_; }

 private:
  const char* first_;
  int index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cuda::Device device_;
  cuda::Stream stream_ = nullptr;
};

void register_pack(torch::stable::detail::StableLibrary& library);
void register_bgemm(torch::stable::detail::StableLibrary& library);
void register_bconv2d(torch::stable::detail::StableLibrary& library);

}  // namespace stompp::binding
