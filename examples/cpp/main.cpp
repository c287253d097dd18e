// Runs a packed network that AOTInductor compiled, in a process without Python.
//
//   packed_inference [--cuda CUDA_LIBRARY] LIBRARY PACKAGE SIZE... < input.f32 > output.f32
//
// LIBRARY is stompp_kernels/libstompp_kernels.so, PACKAGE what sk.package_packed wrote, SIZE... the input's shape,
// batch first. Input and output are float32, row-major. A package of a network on an NVIDIA GPU runs there with --cuda,
// where CUDA_LIBRARY is stompp_kernels/_cuda.so.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

void* open_library(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  if (library == nullptr) throw std::runtime_error(dlerror());
  return library;
}

template <class Function>
Function* find_function(void* library, const char* name) {
  void* function = dlsym(library, name);
  if (function == nullptr) throw std::runtime_error(dlerror());
  return reinterpret_cast<Function*>(function);
}

// Loading the library for GPUs registers nothing: its kernels are added to the ops that LIBRARY has defined.
void load_gpu_kernels(const char* path) {
  void* library = open_library(path);
  if (find_function<int()>(library, "stompp_cuda_finds_torch")() == 0)
    throw std::runtime_error("this torch is built without CUDA");
  const char* problem = find_function<const char*()>(library, "stompp_cuda_register")();
  if (problem != nullptr) throw std::runtime_error(problem);
}

at::Tensor read_input(const std::vector<int64_t>& shape) {
  at::Tensor input = at::empty(shape, at::kFloat);
  const size_t count = static_cast<size_t>(input.numel());
  if (std::fread(input.data_ptr(), sizeof(float), count, stdin) != count)
    throw std::runtime_error("the input has fewer values than its shape");
  return input;
}

void write_output(const at::Tensor& tensor) {
  const at::Tensor output = tensor.to(at::kCPU, at::kFloat).contiguous();
  const size_t count = static_cast<size_t>(output.numel());
  if (std::fwrite(output.data_ptr(), sizeof(float), count, stdout) != count)
    throw std::runtime_error("the output could not be written");
}

}  // namespace

int main(int argc, char** argv) {
  const bool on_gpu = argc > 1 && std::strcmp(argv[1], "--cuda") == 0;
  const int first = on_gpu ? 3 : 1;  // of the arguments behind the option
  if (argc < first + 3) {
    std::fprintf(stderr, "usage: %s [--cuda CUDA_LIBRARY] LIBRARY PACKAGE SIZE... < input.f32 > output.f32\n", argv[0]);
    return 2;
  }
  try {
    std::vector<int64_t> shape;
    for (int i = first + 2; i < argc; ++i) shape.push_back(std::strtoll(argv[i], nullptr, 10));
    open_library(argv[first]);  // which registers torch.ops.stompp; the kernels run on torch's threads
    if (on_gpu) load_gpu_kernels(argv[2]);
    const c10::InferenceMode inference;
    torch::inductor::AOTIModelPackageLoader loader(argv[first + 1]);
    const std::vector<at::Tensor> outputs = loader.run({read_input(shape).to(on_gpu ? at::kCUDA : at::kCPU)});
    write_output(outputs.at(0));
    std::fprintf(stderr, "%zu output(s), the first of %zu value(s)\n", outputs.size(),
                 static_cast<size_t>(outputs[0].numel()));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
