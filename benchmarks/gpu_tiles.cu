// Every tile of the product on some shapes, beside the one that choose.h picks: what its bounds are read off from.
// Prints "M N K kernel milliseconds chosen" lines; gpu_tiles.py builds and runs it.
#include "cuda/product/choose.h"
#include "gpu_timer.cuh"

namespace stompp::cuda {

struct Named {
  const char* name;
  ProductKernel kernel;
};

std::vector<Named> kernels_for(const Product& product, const Device& device) {
  std::vector<Named> kernels;
#ifdef STOMPP_SM100
  if (device.capability >= 100)
    kernels = {{"few", product_few_sm100}, {"narrow", product_narrow_sm100}, {"wide", product_wide_sm100}};
#endif
#ifdef STOMPP_SM80
  if (device.capability < 100)
    kernels = {{"few", product_few_sm80}, {"narrow", product_narrow_sm80}, {"wide", product_wide_sm80}};
#endif
#ifdef STOMPP_SM90A
  if (device.capability == 90) {
    kernels.push_back({"wide wgmma", product_wide_sm90a});
    if (runs_pairs_sm90a()) kernels.push_back({"wide wgmma in pairs", product_pair_sm90a});
    if (product.rows.k_blocks <= kResidentBlocks) kernels.push_back({"resident wgmma", product_resident_sm90a});
  }
#endif
  return kernels;
}

uint32_t* random_words(int64_t count) {
  std::vector<uint32_t> words(static_cast<size_t>(count));
  uint32_t state = 1;
  for (uint32_t& word : words) word = state = state * 1664525u + 1013904223u;
  uint32_t* device;
  check(cudaMalloc(&device, words.size() * 4));
  check(cudaMemcpy(device, words.data(), words.size() * 4, cudaMemcpyHostToDevice));
  return device;
}

void measure(int64_t M, int64_t N, int64_t K, const Device& device) {
  const WeightShape shape = {N, K, 1, 1, 1};
  uint32_t* x = random_words(M * words_for(K));
  uint32_t* weight = random_words(WeightLayout::of(shape).words());
  Epilogue epilogue;
  epilogue.N = N;
  check(cudaMalloc(&epilogue.out, static_cast<size_t>(M * N) * 4));
  const Product product = matrix_product(x, M, {shape, weight}, epilogue);
  for (const Named& named : kernels_for(product, device)) {
    const float ms = median_ms([&] { return named.kernel(product, nullptr); });
    const bool chosen = named.kernel == choose_product(product, device);
    std::printf("%lld %lld %lld %s,%.6g,%d\n", static_cast<long long>(M), static_cast<long long>(N),
                static_cast<long long>(K), named.name, ms, chosen);
  }
  check(cudaFree(x));
  check(cudaFree(weight));
  check(cudaFree(epilogue.out));
}

}  // namespace stompp::cuda

int main(int count, char**) {
  using namespace stompp::cuda;
  if (count > 1) return 0;  // --starts
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0));
  const Device device = {properties.major * 10 + properties.minor, properties.multiProcessorCount};
  for (const int64_t size : {8192, 4096, 2048, 1024}) measure(size, size, size, device);
  for (const int64_t M : {1, 8, 16, 32, 64, 128, 256}) measure(M, 8192, 8192, device);
  for (const int64_t K : {768, 3072}) measure(4096, 768, K, device);
  measure(4096, 3072, 768, device);
  // Many rows beside a short K, as 3 x 3 convolutions have: where weights that stay may pay.
  measure(200704, 256, 1152, device);
  measure(50176, 256, 2304, device);
  measure(12544, 512, 4608, device);
  return 0;
}
