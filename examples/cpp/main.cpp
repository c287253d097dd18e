// Runs a packed network that AOTInductor compiled, in a process without Python.
//
//   packed_inference LIBRARY PACKAGE SIZE... < input.f32 > output.f32
//
// LIBRARY is stompp_kernels/libstompp_kernels.so, PACKAGE what torch._inductor.aoti_compile_and_package wrote, SIZE...
// the input's shape, batch first. Input and output are float32, row-major.
#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

// Registers torch.ops.stompp; the kernels run on torch's threads.
void load_ops(const char* path) {
  if (dlopen(path, RTLD_NOW | RTLD_GLOBAL) == nullptr) throw std::runtime_error(dlerror());
}

at::Tensor read_input(const std::vector<int64_t>& shape) {
  at::Tensor input = at::empty(shape, at::kFloat);
  const size_t count = static_cast<size_t>(input.numel());
  if (std::fread(input.data_ptr(), sizeof(float), count, stdin) != count)
    throw std::runtime_error("the input has fewer values than its shape");
  return input;
}

void write_output(const at::Tensor& tensor) {
  const at::Tensor output = tensor.to(at::kFloat).contiguous();
  const size_t count = static_cast<size_t>(output.numel());
  if (std::fwrite(output.data_ptr(), sizeof(float), count, stdout) != count)
    throw std::runtime_error("the output could not be written");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s LIBRARY PACKAGE SIZE... < input.f32 > output.f32\n", argv[0]);
    return 2;
  }
  try {
    std::vector<int64_t> shape;
    for (int i = 3; i < argc; ++i) shape.push_back(std::strtoll(argv[i], nullptr, 10));
    load_ops(argv[1]);
    const c10::InferenceMode inference;
    torch::inductor::AOTIModelPackageLoader loader(argv[2]);
    const std::vector<at::Tensor> outputs = loader.run({read_input(shape)});
    write_output(outputs.at(0));
    std::fprintf(stderr, "%zu output(s), the first of %zu value(s)\n", outputs.size(),
                 static_cast<size_t>(outputs[0].numel()));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 1;
  }
  return 0;
}
