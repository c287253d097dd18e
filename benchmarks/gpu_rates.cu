// What the instructions that multiply bits reach on this GPU, from registers (wgmma: from shared memory), in operations
// a second: a multiplication and an addition of two bits are two. The bits are random: a GPU draws less power on zeros,
// and its clock is higher then. Prints "name rate" lines; gpu_rates.py builds and runs it.
#include "gpu_timer.cuh"

namespace stompp::cuda {

constexpr int kRounds = 4096, kChains = 8, kThreads = 256;

// murmur3's finalizer (Appleby).
__device__ uint32_t random_bits(uint32_t i) {
  i = (i ^ i >> 16) * 0x85ebca6bu;
  i = (i ^ i >> 13) * 0xc2b2ae35u;
  return i ^ i >> 16;
}

__global__ void and_kernel(int* out) {
  int c[kChains][4] = {};
  uint32_t a[4], b[2];
  for (uint32_t i = 0; i < 4; ++i) a[i] = random_bits(8 * threadIdx.x + i);
  for (uint32_t i = 0; i < 2; ++i) b[i] = random_bits(8 * threadIdx.x + 4 + i);
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
  const uint32_t x = random_bits(threadIdx.x);
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
  uint32_t a[4], b[2];
  for (uint32_t i = 0; i < 4; ++i) a[i] = random_bits(8 * threadIdx.x + i) & 0x01010101u;
  for (uint32_t i = 0; i < 2; ++i) b[i] = random_bits(8 * threadIdx.x + 4 + i) & 0x01010101u;
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
  const uint32_t x = random_bits(threadIdx.x);
  for (int round = 0; round < kRounds; ++round)
#pragma unroll
    for (int i = 0; i < kChains; ++i) c[i] += count_ones(x ^ static_cast<uint32_t>(c[i]));
  int sum = 0;
  for (int i = 0; i < kChains; ++i) sum += c[i];
  out[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// Two warp groups, with 64 rows each and the same 256 outputs.
__global__ void __launch_bounds__(kThreads) warp_group_kernel(int* out) {
  int c[32][4] = {};
  unsigned char* tiles = shared_memory();
  for (uint32_t i = threadIdx.x; i < (8192 + 16384) / 4; i += kThreads)
    reinterpret_cast<uint32_t*>(tiles)[i] = random_bits(i);
  publish_to_tensor_cores();
  synchronize();
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
  std::fflush(stdout);
  check(cudaFree(out));
}

}  // namespace stompp::cuda

int main(int count, char**) {
  using namespace stompp::cuda;
  if (count > 1) return 0;  // --starts
  constexpr double kWarps = kThreads / 32, kCalls = double{kRounds} * kChains * kWarps;
#ifndef STOMPP_SM75
  measure<and_kernel>("mma.and", kCalls * 2 * 16 * 8 * 256);
  measure<bytes_kernel>("mma.u8", kCalls * 2 * 16 * 8 * 32);
#endif
  measure<xor_kernel>("mma.xor", kCalls * 2 * 8 * 8 * 128);
  measure<popc_kernel>("popc", double{kRounds} * kChains * kThreads * 64);
#ifdef STOMPP_SM90A
  measure<warp_group_kernel, 8192 + 16384>("wgmma.and", double{kRounds} / 4 * 2 * 2 * 64 * 256 * 256);
#endif
  return 0;
}
