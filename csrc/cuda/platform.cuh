// What the kernels use of CUDA, in one place: on a machine without a GPU the tests put an emulation in its stead. A
// compiler of the host sees the types alone, which is all that the bindings need.
#pragma once

#include <cstdint>

#include "core/base/status.h"
#include "cuda/tile_descriptor.h"

#ifdef STOMPP_EMULATE_CUDA
#include "emulation.h"
#else
#include <cuda_runtime_api.h>
#include <vector_types.h>

#ifdef __CUDACC__
#include <atomic>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

namespace stompp::cuda {

using Stream = cudaStream_t;
using Size3 = dim3;

#ifdef __CUDACC__

inline Status status_of(cudaError_t error) {
  return error == cudaSuccess ? Status::ok() : Status::error(cudaGetErrorString(error));
}

// Lets a kernel have more shared memory than every kernel has; a device is asked once.
template <auto kKernel, int kSharedBytes>
Status allow_shared_memory() {
  static std::atomic<uint64_t> allowed{0};  // bit d: on device d
  int device = 0;
  const cudaError_t found = cudaGetDevice(&device);
  if (found != cudaSuccess) return status_of(found);
  const uint64_t bit = device < 64 ? uint64_t{1} << device : 0;
  if ((allowed.load(std::memory_order_relaxed) & bit) != 0) return Status::ok();
  const cudaError_t error = cudaFuncSetAttribute(kKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error == cudaSuccess) allowed.fetch_or(bit, std::memory_order_relaxed);
  return status_of(error);
}

// Queues a kernel; the shared memory may be all that the device has. kBlocks: of a cluster, as the kernel itself says.
template <auto kKernel, int kSharedBytes = 0, int kBlocks = 1, class... Parameters>
Status launch(Size3 grid, int threads, Stream stream, const Parameters&... arguments) {
  if constexpr (kSharedBytes > 48 * 1024) {
    const Status status = allow_shared_memory<kKernel, kSharedBytes>();
    if (!status.is_ok()) return status;
  }
  kKernel<<<grid, threads, kSharedBytes, stream>>>(arguments...);
  return status_of(cudaGetLastError());
}

// Whether the present device runs clusters of kBlocks such blocks; the kernel names the size by __cluster_dims__.
template <auto kKernel, int kSharedBytes, int kBlocks>
bool runs_clusters(int threads) {
  cudaLaunchAttribute cluster = {};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kBlocks, 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = kBlocks;
  config.blockDim = threads;
  config.dynamicSmemBytes = kSharedBytes;
  config.attrs = &cluster;
  config.numAttrs = 1;
  int clusters = 0;
  const bool runs = allow_shared_memory<kKernel, kSharedBytes>().is_ok() &&
                    cudaOccupancyMaxActiveClusters(&clusters, kKernel, &config) == cudaSuccess && clusters > 0;
  if (!runs) static_cast<void>(cudaGetLastError());  // which the next launch would report
  return runs;
}

// Counts those of the present device.
inline Status count_multiprocessors(int* count) {
  int device = 0;
  const cudaError_t found = cudaGetDevice(&device);
  if (found != cudaSuccess) return status_of(found);
  return status_of(cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device));
}

inline Status clear_async(void* to, size_t bytes, Stream stream) {
  return status_of(cudaMemsetAsync(to, 0, bytes, stream));
}

// Shared memory of the size given at the launch.
__device__ inline unsigned char* shared_memory() {
  extern __shared__ __align__(1024) unsigned char memory[];
  return memory;
}

__device__ inline void synchronize() { __syncthreads(); }
// Some of a block's threads, whole warps, by a number from 1 to 15.
__device__ inline void synchronize_some(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}
__device__ inline uint32_t shuffle(uint32_t value, int lane) { return __shfl_sync(~0u, value, lane); }
__device__ inline uint32_t shuffle_xor(uint32_t value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
__device__ inline uint32_t ballot(bool condition) { return __ballot_sync(~0u, condition); }
__device__ inline void synchronize_warp() { __syncwarp(); }
__device__ inline int count_ones(uint32_t word) { return __popc(word); }
__device__ inline uint32_t multiply_high(uint32_t a, uint32_t b) { return __umulhi(a, b); }
// Byte k of the result is the byte of b:a that nibble k of the selector names, a's first.
__device__ inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}
__device__ inline uint32_t shift_in_sign(uint32_t bits, int value) {
  return __funnelshift_l(static_cast<uint32_t>(value), bits, 1);
}
__device__ inline void add_atomically(int* to, int value) { atomicAdd(to, value); }
__device__ inline void or_atomically(uint32_t* to, uint32_t bits) { atomicOr(to, bits); }

// Each rounded on its own: never a fused multiply-add.
__device__ inline float multiply_add_rounded(float a, float b, float c) { return __fadd_rn(__fmul_rn(a, b), c); }
__device__ inline float fused_multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ inline float add_rounded(float a, float b) { return __fadd_rn(a, b); }
__device__ inline uint16_t to_half(float f) { return __half_as_ushort(__float2half_rn(f)); }
__device__ inline uint16_t to_bfloat16(float f) { return __bfloat16_as_ushort(__float2bfloat16_rn(f)); }
__device__ inline float from_half(uint16_t h) { return __half2float(__ushort_as_half(h)); }
__device__ inline float from_bfloat16(uint16_t h) { return __uint_as_float(static_cast<uint32_t>(h) << 16); }

__device__ inline unsigned shared_address(const void* pointer) {
  return static_cast<unsigned>(__cvta_generic_to_shared(pointer));
}

// In the place of an instruction that the architecture of a compilation lacks: a kernel that comes here ends with an
// error, where an empty one would leave wrong results.
__device__ inline void lacks_instruction() { __trap(); }

// A store to shared memory by which a thread brings what others read.
__device__ inline void store_to_shared(uint32_t* to, uint32_t word) { *to = word; }

// Starts a copy of 4, 8 or 16 bytes to shared memory; zeros where `valid` is false, and then `from` is not read.
template <int kBytes>
__device__ inline void copy_async(void* to, const void* from, bool valid) {
#if __CUDA_ARCH__ >= 800
  const unsigned address = shared_address(to);
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
  else
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(kBytes), "r"(bytes)
                 : "memory");
#else
  struct alignas(kBytes) Words {
    uint32_t words[kBytes / 4];
  } words = {};
  if (valid) words = *static_cast<const Words*>(from);
  *static_cast<Words*>(to) = words;
#endif
}

// Closes the group of the copies started since the last one.
__device__ inline void commit_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's groups but the latest kPending.
template <int kPending>
__device__ inline void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// In shared memory: a phase of it ends when as many threads as it was made for have said how many bytes are to come,
// and these have come.
using Barrier = uint64_t;

// To be called by one thread; others use the barriers once they have met it. The fence lets the copies, which are of
// the asynchronous proxy, see the barriers.
//
// kBlocks > 1: other blocks of the cluster use them once the cluster has met.
template <int kBlocks = 1>
__device__ inline void init_barriers(Barrier* barriers, int count, int arrivals) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  for (int i = 0; i < count; ++i)
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barriers + i)), "r"(arrivals)
                 : "memory");
  if constexpr (kBlocks > 1) asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  lacks_instruction();
#endif
}

__device__ inline void expect_bytes(Barrier* barrier, int bytes) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
#else
  lacks_instruction();
#endif
}

// Starts a copy of `bytes`, which the barrier expects, to shared memory; both ends and the size are multiples of 16.
// With kBlocks > 1 it goes to the same place in each of the cluster's blocks, and to the same barrier of each.
template <int kBlocks = 1>
__device__ inline void copy_bulk(void* to, const void* from, int bytes, Barrier* barrier) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if constexpr (kBlocks == 1)
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     shared_address(to)),
                 "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
  else
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], "
        "%4;" ::"r"(shared_address(to)),
        "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier)),
        "h"(static_cast<uint16_t>((1 << kBlocks) - 1))
        : "memory");
#else
  lacks_instruction();
#endif
}

// Returns this block's number in its cluster.
__device__ inline int cluster_rank() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#else
  lacks_instruction();
  return 0;
#endif
}

// By a whole warp: one arrival at the same barrier of another block, when all its lanes have come here. It says that
// what they read has been read, and is relaxed: nothing that they wrote goes with it, and a release to a cluster would
// wait for all of their writes to memory (MEMBAR.ALL.GPU).
__device__ inline void arrive_at_block(Barrier* barrier, int rank) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  if (threadIdx.x % 32 == 0)
    asm volatile(
        "{\n"
        ".reg .b32 there;\n"
        "mapa.shared::cluster.u32 there, %0, %1;\n"
        "mbarrier.arrive.relaxed.cluster.shared::cluster.b64 _, [there];\n"
        "}" ::"r"(shared_address(barrier)),
        "r"(rank)
        : "memory");
#else
  lacks_instruction();
#endif
}

// All threads of a cluster arrive in turn with waiting. What a thread did before it arrived, in whichever block, has
// happened for those that have waited.
__device__ inline void arrive_in_cluster() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#else
  lacks_instruction();
#endif
}

__device__ inline void wait_for_cluster() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  lacks_instruction();
#endif
}

// Waits for the end of the phase of this parity; the first one has 0. What was copied is then seen by this thread and
// by the tensor cores' reads that it starts, without a fence.
__device__ inline void wait_barrier(Barrier* barrier, int parity) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#else
  lacks_instruction();
#endif
}

// Four matrices of 8 rows of 16 bytes in shared memory: lanes 8 i to 8 i + 7 say where the rows of matrix i lie, and
// words[i] of lane 4 g + t is word t of its row g (PTX ISA, "ldmatrix").
__device__ inline void load_matrices(uint32_t (&words)[4], const uint32_t* row) {
#if __CUDA_ARCH__ >= 750
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row)));
#else
  lacks_instruction();
#endif
}

// c += pop(a & b) of a 16 x 256 and a 256 x 8 tile of bits; mma.m16n8k256's fragments (PTX ISA, "mma.sync").
__device__ inline void mma_and_16x8x256(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.and.popc {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  lacks_instruction();
#endif
}

// c += a b of a 16 x 32 and a 32 x 8 tile of unsigned bytes.
__device__ inline void mma_bytes_16x8x32(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  lacks_instruction();
#endif
}

// c += pop(a ^ b) of an 8 x 128 and a 128 x 8 tile of bits: what sm_75 has.
__device__ inline void mma_xor_8x8x128(int& c0, int& c1, uint32_t a, uint32_t b) {
#if __CUDA_ARCH__ >= 750
  asm("mma.sync.aligned.m8n8k128.row.col.s32.b1.b1.s32.xor.popc {%0,%1}, {%2}, {%3}, {%0,%1};"
      : "+r"(c0), "+r"(c1)
      : "r"(a), "r"(b));
#else
  lacks_instruction();
#endif
}

__device__ inline uint64_t describe_tile(const void* tile) { return tile_descriptor(shared_address(tile)); }

// What this thread has in shared memory is seen by the tensor cores' own reads of it.
__device__ inline void publish_to_tensor_cores() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#else
  lacks_instruction();
#endif
}

// Before the first product of a round: registers of the accumulators are settled.
__device__ inline void begin_products() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  lacks_instruction();
#endif
}

__device__ inline void commit_products() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#else
  lacks_instruction();
#endif
}

// Waits for this warp group's rounds but the latest kPending.
template <int kPending>
__device__ inline void wait_for_products() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#else
  lacks_instruction();
#endif
}

// The same for all rounds. Nothing reads the accumulators before, as the compiler is told that they change here.
__device__ inline void wait_for_all_products(int (&c)[32][4]) {
  wait_for_products<0>();
#pragma unroll
  for (int j = 0; j < 32; ++j) asm volatile("" : "+r"(c[j][0]), "+r"(c[j][1]), "+r"(c[j][2]), "+r"(c[j][3])::"memory");
}

// Starts c += pop(a & b) of a 64 x 256 and a 256 x 256 tile of bits in shared memory. Warp w of the group holds rows
// 16 w to 16 w + 15 of c, as mma_and_16x8x256 does, c[j] being outputs 8 j to 8 j + 7.
__device__ inline void multiply_warp_group(int (&c)[32][4], uint64_t a, uint64_t b) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define STOMPP_ROW(j) "+r"(c[j][0]), "+r"(c[j][1]), "+r"(c[j][2]), "+r"(c[j][3])
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k256.s32.b1.b1.and.popc {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, 1;"
      : STOMPP_ROW(0), STOMPP_ROW(1), STOMPP_ROW(2), STOMPP_ROW(3), STOMPP_ROW(4), STOMPP_ROW(5), STOMPP_ROW(6),
        STOMPP_ROW(7), STOMPP_ROW(8), STOMPP_ROW(9), STOMPP_ROW(10), STOMPP_ROW(11), STOMPP_ROW(12), STOMPP_ROW(13),
        STOMPP_ROW(14), STOMPP_ROW(15), STOMPP_ROW(16), STOMPP_ROW(17), STOMPP_ROW(18), STOMPP_ROW(19), STOMPP_ROW(20),
        STOMPP_ROW(21), STOMPP_ROW(22), STOMPP_ROW(23), STOMPP_ROW(24), STOMPP_ROW(25), STOMPP_ROW(26), STOMPP_ROW(27),
        STOMPP_ROW(28), STOMPP_ROW(29), STOMPP_ROW(30), STOMPP_ROW(31)
      : "l"(a), "l"(b));
#undef STOMPP_ROW
#else
  lacks_instruction();
#endif
}

#endif  // __CUDACC__
}  // namespace stompp::cuda
#endif
