#include "torch/cuda/gpu.h"

#include <cuda_runtime_api.h>

#include <mutex>

#include "cuda/weight_layout.h"
#include "torch/cuda/architectures.h"

// In libtorch_cuda, which a torch for CPUs does not have: weak, so that the library builds and loads with that too.
extern "C" __attribute__((weak, visibility("default"))) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace stompp::binding {
namespace {

int index_of(const char* op, const char* argument, const Tensor& tensor) {
  check(tensor.is_cuda(), op, ": ", argument, " is on ", DeviceOf{tensor},
        " and another argument on a GPU, but all tensors must be on one device");
  return tensor.get_device();
}

void check_cuda(const char* op, cudaError_t error) {
  check(error == cudaSuccess, op, ": CUDA says: ", cudaGetErrorString(error));
}

int attribute_of(const char* op, int index, cudaDeviceAttr attribute) {
  int value = 0;
  check_cuda(op, cudaDeviceGetAttribute(&value, attribute, index));
  return value;
}

}  // namespace

bool torch_has_cuda() { return aoti_torch_get_current_cuda_stream != nullptr; }

cuda::Device device_at(const char* op, int index) {
  static std::mutex mutex;
  static std::vector<cuda::Device> known;
  const std::lock_guard<std::mutex> lock(mutex);
  if (known.size() <= static_cast<size_t>(index)) known.resize(index + 1, {0, 0});
  cuda::Device& device = known[index];
  if (device.multiprocessors > 0) return device;
  const int capability = 10 * attribute_of(op, index, cudaDevAttrComputeCapabilityMajor) +
                         attribute_of(op, index, cudaDevAttrComputeCapabilityMinor);
  const int code = code_for(capability);
  check(code > 0, op, ": the library for GPUs was compiled for ", architectures(), ", and cuda:", index, " is a ",
        capability / 10, ".", capability % 10);
  device = {code, attribute_of(op, index, cudaDevAttrMultiProcessorCount)};
  return device;
}

Gpu::Gpu(const char* op, const char* argument, const Tensor& tensor)
    : first_(argument), index_(index_of(op, argument, tensor)), guard_(index_), device_(device_at(op, index_)) {
  // This library has a CUDA runtime of its own, with a current device of its own.
  check_cuda(op, cudaSetDevice(index_));
  check(torch_has_cuda(), op, ": this torch was built without CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
  stream_ = static_cast<cuda::Stream>(stream);
}

cuda::DeviceWeight Gpu::weight(const char* op, const Tensor& weight, const WeightShape& shape) const {
  check(op, check_shape(shape));
  check_dtype(op, "weight", weight, ScalarType::Byte, "uint8, made by pack_weight or pack_conv_weight");
  const int64_t bytes = cuda::WeightLayout::of(shape).bytes();
  check(weight.dim() == 1 && weight.numel() == bytes && weight.is_contiguous(), op, ": weight must be the ", bytes,
        " packed bytes of its shape, one-dimensional and contiguous, got shape ", ShapeOf{weight});
  check_here(op, "weight", weight);
  check(reinterpret_cast<uintptr_t>(weight.data_ptr()) % 16 == 0, op, ": weight must begin at a multiple of 16 bytes");
  return {shape, word_pointer(weight)};
}

}  // namespace stompp::binding
