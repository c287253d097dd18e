// What the instructions that multiply bits reach on this GPU, from registers (wgmma: from shared memory), in operations
// a second: a multiplication and an addition of two bits are two. Prints "name rate" lines; gpu_rates.py builds and
// runs it.
#include "gpu_timer.cuh"

namespace stompp::cuda {

constexpr int kRounds = 4096, kChains = 8, kThreads = 256;

__global__ void and_kernel(int* out) {
  int c[kChains][4] = {};
  const uint32_t x = threadIdx.x * 2654435761u;
  const uint32_t a[4] = {x, ~x, x << 1, x >> 1}, b[2] = {x ^ 0x55555555u, x + 1};
  for (int round = 0; round < kRounds; ++round)
#pragma unroll
    for (int i = 0; i < kChains; ++i) mma_and_16x8x256(c[i], a, b);
  int sum = 0;
  for (int i = 0; i < kChains; ++i) sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// Operands change from one to the next: where it is emulated, what they add would be found once for all.
__global__ void xor_kernel(int* out) {
  int c[kChains][2] = {};
  const uint32_t x = threadIdx.x * 2654435761u;
  for (int round = 0; round < kRounds; ++round)
#pragma unroll
    for (int i = 0; i < kChains; ++i)
      mma_xor_8x8x128(c[i][0], c[i][1], x + static_cast<uint32_t>(round * kChains + i), ~x);
  int sum = 0;
  for (int i = 0; i < kChains; ++i) sum += c[i][0] + c[i][1];
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

__global__ void bytes_kernel(int* out) {
  int c[kChains][4] = {};
  const uint32_t x = threadIdx.x * 2654435761u & 0x01010101u;
  const uint32_t a[4] = {x, x, x, x}, b[2] = {x, x};
  for (int round = 0; round < kRounds; ++round)
#pragma unroll
    for (int i = 0; i < kChains; ++i) mma_bytes_16x8x32(c[i], a, b);
  int sum = 0;
  for (int i = 0; i < kChains; ++i) sum += c[i][0] + c[i][1] + c[i][2] + c[i][3];
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// XOR and population count of words, 64 bit operations each.
__global__ void popc_kernel(int* out) {
  int c[kChains] = {};
  uint32_t x = threadIdx.x * 2654435761u;
  for (int round = 0; round < kRounds; ++round)
#pragma unroll
    for (int i = 0; i < kChains; ++i) c[i] += count_ones(x ^ static_cast<uint32_t>(c[i]));
  int sum = 0;
  for (int i = 0; i < kChains; ++i) sum += c[i];
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// Two warp groups; the tiles hold anything.
__global__ void __launch_bounds__(kThreads) warp_group_kernel(int* out) {
  int c[32][4] = {};
  const unsigned char* tiles = shared_memory();
  const uint64_t a = describe_tile(tiles + threadIdx.x / 128 * 4096), b = describe_tile(tiles + 8192);
  for (int round = 0; round < kRounds / 16; ++round) {
    begin_products();
#pragma unroll
    for (int i = 0; i < 4; ++i) multiply_warp_group(c, a, b);
    commit_products();
    wait_for_all_products(c);
  }
  int sum = 0;
  for (int j = 0; j < 32; ++j) sum += c[j][0] + c[j][1] + c[j][2] + c[j][3];
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// operations: of one thread block.
template <void (*kKernel)(int*), int kSharedBytes = 0>
void measure(const char* name, double operations) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0));
  const int blocks = 8 * properties.multiProcessorCount;
  int* out;
  check(cudaMalloc(&out, sizeof(int) * static_cast<size_t>(blocks) * kThreads));
  const float ms = median_ms(
      [&] { return launch<kKernel, kSharedBytes>(Size3(static_cast<unsigned>(blocks)), kThreads, nullptr, out); });
  std::printf("%s %.6g\n", name, operations * blocks / (ms * 1e-3));
  check(cudaFree(out));
}

}  // namespace stompp::cuda

int main() {
  using namespace stompp::cuda;
  constexpr double kWarps = kThreads / 32, kCalls = double{kRounds} * kChains * kWarps;
  measure<and_kernel>("mma.and", kCalls * 2 * 16 * 8 * 256);
  measure<xor_kernel>("mma.xor", kCalls * 2 * 8 * 8 * 128);
  measure<bytes_kernel>("mma.u8", kCalls * 2 * 16 * 8 * 32);
  measure<popc_kernel>("popc", double{kRounds} * kChains * kThreads * 64);
#ifdef STOMPP_SM90A
  measure<warp_group_kernel, 8192 + 16384>("wgmma.and", double{kRounds} / 4 * 2 * 2 * 64 * 256 * 256);
#endif
  return 0;
}
