// What Python asks of the library, through ctypes: nothing here needs Python or a GPU.
#include <cuda_runtime_api.h>

#include <string>

#include "cuda/weight_layout.h"
#include "torch/cuda/architectures.h"
#include "torch/cuda/gpu.h"

#define STOMPP_EXPORT extern "C" __attribute__((visibility("default")))

STOMPP_EXPORT const char* stompp_cuda_architectures() { return stompp::binding::architectures(); }

STOMPP_EXPORT int stompp_cuda_code_for(int capability) { return stompp::binding::code_for(capability); }

STOMPP_EXPORT int stompp_cuda_finds_torch() { return stompp::binding::torch_has_cuda() ? 1 : 0; }

// 1000 * major + 10 * minor, as CUDA counts; the driver's is 0 where there is none.
STOMPP_EXPORT int stompp_cuda_runtime_version() {
  int version = 0;
  return cudaRuntimeGetVersion(&version) == cudaSuccess ? version : 0;
}

STOMPP_EXPORT int stompp_cuda_driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

// Bytes of a packed weight, -1 for a shape that none can have.
STOMPP_EXPORT int64_t stompp_cuda_packed_bytes(int64_t out_channels, int64_t in_channels, int64_t kernel_h,
                                               int64_t kernel_w, int64_t groups) {
  const stompp::WeightShape shape = {out_channels, in_channels, kernel_h, kernel_w, groups};
  return stompp::check_shape(shape).is_ok() ? stompp::cuda::WeightLayout::of(shape).bytes() : -1;
}

// Registers the kernels of torch.ops.stompp for GPUs, and returns null or what went wrong. STABLE_TORCH_LIBRARY_IMPL
// would do it when the library is loaded; one that cannot run here must leave the ops to others.
STOMPP_EXPORT const char* stompp_cuda_register() {
  using torch::stable::detail::StableLibrary;
  static std::string error;
  try {
    static StableLibrary library(StableLibrary::Kind::IMPL, "stompp", "CUDA", __FILE__, __LINE__);
    static const bool done = [] {
      stompp::binding::register_pack(library);
      stompp::binding::register_bgemm(library);
      stompp::binding::register_bconv2d(library);
      return true;
    }();
    (void)done;
    return nullptr;
  } catch (const std::exception& exception) {
    error = exception.what();
    return error.c_str();
  }
}
