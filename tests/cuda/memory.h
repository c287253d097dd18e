// Memory of the tests that the kernels reach: the same memory in the emulation, a copy on a GPU.
#pragma once

#include <cstdio>
#include <cstdlib>

#include "check.h"
#include "cuda/platform.cuh"

namespace stompp::cuda {

#ifdef STOMPP_EMULATE_CUDA
inline void wait_for_kernels() {}
#else
inline void require(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}
inline void wait_for_kernels() { require(cudaDeviceSynchronize()); }
#endif

// Exactly as long as it must be on both sides, so that a sanitizer sees an access beyond it.
template <class T>
class Mirrored {
 public:
  explicit Mirrored(int64_t n) : size(n), host_(n) {
#ifdef STOMPP_EMULATE_CUDA
    device_ = host_.get();
#else
    require(cudaMalloc(&device_, bytes()));
#endif
  }
  Mirrored(const Mirrored&) = delete;
  Mirrored& operator=(const Mirrored&) = delete;

#ifdef STOMPP_EMULATE_CUDA
  void send() {}
  void fetch() {}
#else
  ~Mirrored() { cudaFree(device_); }
  void send() { require(cudaMemcpy(device_, host_.get(), bytes(), cudaMemcpyHostToDevice)); }
  void fetch() { require(cudaMemcpy(host_.get(), device_, bytes(), cudaMemcpyDeviceToHost)); }
#endif

  T& operator[](int64_t i) { return host_[i]; }
  T* host() { return host_.get(); }
  T* device() { return device_; }

  const int64_t size;

 private:
  size_t bytes() const { return static_cast<size_t>(size) * sizeof(T); }

  test::Buffer<T> host_;
  T* device_ = nullptr;
};

}  // namespace stompp::cuda
