// CUDA kernels on a CPU, for tests: what csrc/cuda/platform.cuh offers, with the threads of a block as fibers.
//
// A fiber runs until it waits: at a barrier of the block, or for the other lanes of its warp. Fibers take turns in a
// random order, which differs from turn to turn, and some warps stand still for some turns. Shared memory begins as
// 0xCD bytes and has its exact size, so that the address sanitizer sees an access beyond it. An asynchronous copy lands
// at once or when it is waited for, by chance, and products of warp groups happen when they are waited for. So a
// missing barrier or wait, or a stage that is overwritten too early, gives another result in one order or another.
// Threads that wait for ever end the program, and so do bulk copies that their barrier does not expect or that nobody
// waits for.
//
// The tensor cores of warp groups read another copy of shared memory, the asynchronous proxy's. It gets what a thread
// brought when that thread publishes it, and what bulk copies bring; the rest is poison there. Their descriptors are
// taken apart as the hardware does, and products that begin without a fence of the registers end the program.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>

#include "core/base/float_types.h"
#include "core/base/status.h"
#include "cuda/tile_descriptor.h"
#include "fibers.h"

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define threadIdx (::stompp::cuda::emulation::current().thread_index)
#define blockIdx (::stompp::cuda::emulation::current().block->index)
#define gridDim (::stompp::cuda::emulation::current().block->grid)

namespace stompp::cuda {

using Stream = void*;

template <auto kKernel, int kSharedBytes, int kBlocks>
bool runs_clusters(int) {
  return true;
}

template <auto kKernel, int kSharedBytes = 0, int kBlocks = 1, class... Parameters>
Status launch(Size3 grid, int threads, Stream, const Parameters&... arguments) {
  static_assert(kSharedBytes <= emulation::kMostSharedBytes, "no GPU has more for a block");
  if (threads < 1 || threads > 1024 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    emulation::fail("no GPU runs a grid of this size");
  if (grid.x % kBlocks != 0) emulation::fail("a grid is not of whole clusters");
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; x += kBlocks)
        emulation::run_cluster({x, y, z}, grid, kBlocks, threads, kSharedBytes, [&] { kKernel(arguments...); });
  return Status::ok();
}

// So few that blocks which stay on one go over several tiles.
inline Status count_multiprocessors(int* count) {
  *count = 2;
  return Status::ok();
}

inline Status clear_async(void* to, size_t bytes, Stream) {
  std::memset(to, 0, bytes);
  return Status::ok();
}

inline unsigned char* shared_memory() { return emulation::current().block->shared.get(); }

inline int cluster_rank() { return emulation::current().block->rank; }

inline void arrive_in_cluster() {
  emulation::Fiber& fiber = emulation::current();
  emulation::Meeting& meeting = emulation::cluster().barrier;
  if (fiber.arrived) emulation::fail("a thread arrives twice at the barrier of its cluster");
  fiber.arrived = true;
  fiber.cluster_round = meeting.round;
  ++emulation::cluster().progress;
  if (++meeting.arrived == meeting.members) {
    meeting.arrived = 0;
    ++meeting.round;
  }
}

inline void wait_for_cluster() {
  emulation::Fiber& fiber = emulation::current();
  if (!fiber.arrived) emulation::fail("a thread waits for its cluster and has not arrived itself");
  while (emulation::cluster().barrier.round == fiber.cluster_round) emulation::yield();
  fiber.arrived = false;
}

inline void synchronize() { emulation::meet(emulation::current().block->barrier); }

inline void synchronize_some(int number, int threads) {
  if (number < 1 || number > 15) emulation::fail("a barrier of some threads has a number from 1 to 15");
  emulation::Meeting& barrier = emulation::current().block->numbered_barriers[number];
  if (barrier.arrived > 0 && barrier.members != threads) emulation::fail("threads await others in different numbers");
  barrier.members = threads;
  emulation::meet(barrier);
}

inline uint32_t shuffle(uint32_t value, int lane) {
  uint32_t all[emulation::kLanes];
  return emulation::exchange("shuffle", value, all)[lane];
}

inline uint32_t shuffle_xor(uint32_t value, int mask) { return shuffle(value, emulation::current().lane ^ mask); }

inline uint32_t ballot(bool condition) {
  bool all[emulation::kLanes];
  emulation::exchange("ballot", condition, all);
  uint32_t bits = 0;
  for (int lane = 0; lane < emulation::kLanes; ++lane) bits |= static_cast<uint32_t>(all[lane]) << lane;
  return bits;
}

inline void synchronize_warp() {
  bool all[emulation::kLanes];
  emulation::exchange("synchronize_warp", true, all);
}

inline int count_ones(uint32_t word) { return __builtin_popcount(word); }
inline uint32_t multiply_high(uint32_t a, uint32_t b) {
  return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32);
}
inline uint32_t permute_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int k = 0; k < 4; ++k) result |= static_cast<uint32_t>(bytes >> 8 * (selector >> 4 * k & 7) & 255) << 8 * k;
  return result;
}
inline uint32_t shift_in_sign(uint32_t bits, int value) { return bits << 1 | static_cast<uint32_t>(value) >> 31; }
inline void add_atomically(int* to, int value) { *to += value; }
inline void or_atomically(uint32_t* to, uint32_t bits) { *to |= bits; }

inline float multiply_add_rounded(float a, float b, float c) {
  const volatile float product = a * b;
  return product + c;
}
inline float fused_multiply_add(float a, float b, float c) { return std::fmaf(a, b, c); }
inline float add_rounded(float a, float b) { return a + b; }
inline uint16_t to_half(float f) { return float_to_half(f); }
inline uint16_t to_bfloat16(float f) { return float_to_bfloat16(f); }
inline float from_half(uint16_t h) { return half_to_float(h); }
inline float from_bfloat16(uint16_t h) { return bfloat16_to_float(h); }

inline void store_to_shared(uint32_t* to, uint32_t word) {
  *to = word;
  emulation::current().unpublished.emplace_back(to, static_cast<int>(sizeof(word)));
}

template <int kBytes>
void copy_async(void* to, const void* from, bool valid) {
  if (reinterpret_cast<uintptr_t>(to) % kBytes != 0 || (valid && reinterpret_cast<uintptr_t>(from) % kBytes != 0))
    emulation::fail("an asynchronous copy is not aligned");
  const emulation::Copy copy = {to, from, kBytes, valid};
  if (emulation::scheduler().random() % 2 == 0)
    emulation::land_here(copy);
  else
    emulation::current().groups.back().push_back(copy);
}

inline void commit_copies() { emulation::current().groups.emplace_back(); }

template <int kPending>
void wait_for_copies() {
  auto& groups = emulation::current().groups;
  while (static_cast<int>(groups.size()) - 1 > kPending) {
    for (const emulation::Copy& copy : groups.front()) emulation::land_here(copy);
    groups.erase(groups.begin());
  }
}

namespace emulation {

inline void check_barrier(const Barrier* barrier) {
  if (reinterpret_cast<uintptr_t>(barrier) % sizeof(Barrier) != 0) fail("a barrier in memory is not aligned");
  if (barrier->parity > 1) fail("a barrier in memory is used before it is made, or was overwritten");
}

inline void end_phase_if_complete(Barrier* barrier) {
  if (barrier->missing != 0 || barrier->bytes != 0) return;
  *barrier = {static_cast<uint8_t>(barrier->parity ^ 1), barrier->arrivals, barrier->arrivals, 0};
  ++cluster().progress;
}

inline void arrive(Barrier* barrier, int bytes) {
  check_barrier(barrier);
  if (barrier->missing == 0) fail("more threads arrive at a barrier in memory than it was made for");
  --barrier->missing;
  barrier->bytes += bytes;
  end_phase_if_complete(barrier);
}

// Another block's copy may come before its bytes are expected, while threads are still to arrive.
inline void land(const BulkCopy& bulk) {
  check_barrier(bulk.barrier);
  bulk.copy.land();
  publish(*bulk.block, bulk.copy.to, bulk.copy.bytes);
  bulk.barrier->bytes -= bulk.copy.bytes;
  const bool may_be_early = cluster().blocks.size() > 1 && bulk.barrier->missing > 0;
  if (bulk.barrier->bytes < 0 && !may_be_early) fail("a bulk copy brings more bytes than its barrier expects");
  end_phase_if_complete(bulk.barrier);
}

// What lies in another block's shared memory where this lies in the running thread's.
template <class T>
T* in_block(Block& block, T* here) {
  if (block.threads == 0) fail("a block that has ended is written to");
  const ptrdiff_t offset = reinterpret_cast<unsigned char*>(here) - current().block->shared.get();
  return reinterpret_cast<T*>(block.shared.get() + offset);
}

}  // namespace emulation

template <int kBlocks = 1>
void init_barriers(Barrier* barriers, int count, int arrivals) {
  const uint8_t missing = static_cast<uint8_t>(arrivals);
  for (int i = 0; i < count; ++i) barriers[i] = {0, missing, missing, 0};
}

inline void expect_bytes(Barrier* barrier, int bytes) { emulation::arrive(barrier, bytes); }

inline void arrive_at_block(Barrier* barrier, int rank) {
  bool all[emulation::kLanes];
  emulation::exchange("arrive_at_block", true, all);
  emulation::Block& block = emulation::cluster().blocks.at(static_cast<size_t>(rank));
  if (emulation::current().lane == 0) emulation::arrive(emulation::in_block(block, barrier), 0);
}

// The hardware would let a block's own bytes come before they are expected; here they must not.
template <int kBlocks = 1>
void copy_bulk(void* to, const void* from, int bytes, Barrier* barrier) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | static_cast<unsigned>(bytes)) % 16 != 0)
    emulation::fail("a bulk copy is not aligned");
  for (emulation::Block& block : emulation::cluster().blocks) {
    if (kBlocks == 1 && &block != emulation::current().block) continue;
    Barrier* there = emulation::in_block(block, barrier);
    emulation::check_barrier(there);
    const emulation::BulkCopy bulk = {
        {emulation::in_block(block, static_cast<unsigned char*>(to)), from, bytes, true}, there, &block};
    if (emulation::scheduler().random() % 2 == 0)
      emulation::land(bulk);
    else
      block.bulk_copies.push_back(bulk);
  }
}

// Brings what the barrier waits for, once somebody waits.
inline void wait_barrier(Barrier* barrier, int parity) {
  emulation::check_barrier(barrier);
  auto& copies = emulation::current().block->bulk_copies;
  while (barrier->parity == parity) {
    const auto awaited =
        std::find_if(copies.begin(), copies.end(), [=](const auto& bulk) { return bulk.barrier == barrier; });
    if (awaited == copies.end()) {
      emulation::yield();
      continue;
    }
    emulation::land(*awaited);
    copies.erase(awaited);
  }
}

inline void load_matrices(uint32_t (&words)[4], const uint32_t* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) emulation::fail("a row of a matrix is not aligned");
  const uint32_t* all[emulation::kLanes];
  emulation::exchange("ldmatrix", row, all);
  const int g = emulation::current().lane / 4, t = emulation::current().lane % 4;
  for (int i = 0; i < 4; ++i) words[i] = all[8 * i + g][t];
}

// The fragments of PTX's "Matrix Fragments for mma.m16n8k256": lane 4 g + t holds, of a, bits 32 t .. of the first and
// the second 128 of K of rows g and g + 8; of b, the same of output g; of c, outputs 2 t and 2 t + 1 of both rows.
struct MmaOperands {
  uint32_t a[4], b[2];

  static MmaOperands of(const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    return {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  }
};

inline void mma_and_16x8x256(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaOperands all[emulation::kLanes];
  emulation::exchange("mma.m16n8k256.and", MmaOperands::of(a, b), all);
  const int g = emulation::current().lane / 4, t = emulation::current().lane % 4;
  for (int row = 0; row < 2; ++row)
    for (int column = 0; column < 2; ++column)
      for (int k = 0; k < 4; ++k)
        for (int part = 0; part < 2; ++part)
          c[2 * row + column] += count_ones(all[4 * g + k].a[row + 2 * part] & all[4 * (2 * t + column) + k].b[part]);
}

// "Matrix Fragments for mma.m16n8k32": as above, with bytes 4 t .. of the first and the second 16 of K.
inline void mma_bytes_16x8x32(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  MmaOperands all[emulation::kLanes];
  emulation::exchange("mma.m16n8k32.u8", MmaOperands::of(a, b), all);
  const int g = emulation::current().lane / 4, t = emulation::current().lane % 4;
  for (int row = 0; row < 2; ++row)
    for (int column = 0; column < 2; ++column)
      for (int k = 0; k < 4; ++k)
        for (int part = 0; part < 2; ++part)
          for (int byte = 0; byte < 32; byte += 8)
            c[2 * row + column] += static_cast<int>((all[4 * g + k].a[row + 2 * part] >> byte & 255u) *
                                                    (all[4 * (2 * t + column) + k].b[part] >> byte & 255u));
}

// "Matrix Fragments for mma.m8n8k128": lane 4 g + t holds bits 32 t .. of row g of a and of output g of b.
inline void mma_xor_8x8x128(int& c0, int& c1, uint32_t a, uint32_t b) {
  struct Operands {
    uint32_t a, b;
  };
  Operands all[emulation::kLanes];
  emulation::exchange("mma.m8n8k128.xor", Operands{a, b}, all);
  const int g = emulation::current().lane / 4, t = emulation::current().lane % 4;
  for (int k = 0; k < 4; ++k) {
    c0 += count_ones(all[4 * g + k].a ^ all[8 * t + k].b);
    c1 += count_ones(all[4 * g + k].a ^ all[4 * (2 * t + 1) + k].b);
  }
}

// Descriptors have the offset in shared memory, which begins at a multiple of 1024 bytes, in the place of the address.
inline uint64_t describe_tile(const void* tile) {
  const unsigned char* base = emulation::current().block->shared.get();
  return tile_descriptor(static_cast<uint64_t>(static_cast<const unsigned char*>(tile) - base));
}

namespace emulation {

// A descriptor, taken apart (PTX ISA, "Matrix Descriptor Format").
struct Tile {
  uint64_t address, group_bytes;

  static Tile of(uint64_t descriptor) {
    const Tile tile = {(descriptor & 0x3fff) << 4, (descriptor >> 32 & 0x3fff) << 4};
    if (descriptor >> 62 != 2) fail("a descriptor does not name the 64-byte swizzle");
    if ((descriptor >> 14 & 3) != 0 || (descriptor >> 30 & 3) != 0 || (descriptor >> 46 & 0xffff) != 0)
      fail("a descriptor has bits where there must be none");
    if ((descriptor >> 16 & 0x3fff) != 1) fail("a descriptor of swizzled rows has a leading distance");
    if (tile.address % 512 > 32 || tile.address % 32 != 0) fail("a swizzled tile does not begin at a group of rows");
    if (tile.group_bytes % 512 != 0) fail("groups of rows lie askew to the swizzle");
    return tile;
  }

  // The swizzle moves bits 7 and 8 of an address into bits 4 and 5.
  uint32_t word(int row, int index) const {
    uint64_t at =
        address + static_cast<uint64_t>(row / 8) * group_bytes + static_cast<uint64_t>(row % 8 * 64 + index * 4);
    at ^= (at >> 7 & 3) << 4;
    uint32_t result;
    std::memcpy(&result, current().block->published.get() + at, sizeof(result));
    return result;
  }
};

}  // namespace emulation

inline void publish_to_tensor_cores() {
  for (const auto& [at, bytes] : emulation::current().unpublished)
    emulation::publish(*emulation::current().block, at, bytes);
  emulation::current().unpublished.clear();
}

inline void begin_products() { emulation::current().registers_are_fenced = true; }

inline void commit_products() {
  emulation::current().rounds.emplace_back();
  emulation::current().registers_are_fenced = false;
}

template <int kPending>
void wait_for_products() {
  auto& rounds = emulation::current().rounds;
  while (static_cast<int>(rounds.size()) - 1 > kPending) {
    for (const std::function<void()>& product : rounds.front()) product();
    rounds.erase(rounds.begin());
  }
}

inline void wait_for_all_products(int (&)[32][4]) { wait_for_products<0>(); }

// The products happen when they are waited for.
inline void multiply_warp_group(int (&c)[32][4], uint64_t a, uint64_t b) {
  const emulation::Fiber& fiber = emulation::current();
  if (!fiber.registers_are_fenced) emulation::fail("products of a warp group begin before its registers are fenced");
  struct Operands {
    uint64_t a, b;
  };
  Operands all[emulation::kLanes];
  emulation::exchange("wgmma.m64n256k256.and", Operands{a, b}, all);
  for (const Operands& other : all)
    if (other.a != a || other.b != b) emulation::fail("lanes of a warp describe different tiles");
  const emulation::Tile rows = emulation::Tile::of(a), outputs = emulation::Tile::of(b);
  const int first = fiber.warp % 4 * 16 + fiber.lane / 4, pair = fiber.lane % 4 * 2;
  int (*out)[4] = c;
  emulation::current().rounds.back().push_back([=] {
    for (int j = 0; j < 32; ++j)
      for (int i = 0; i < 4; ++i)
        for (int word = 0; word < 8; ++word)
          out[j][i] += count_ones(rows.word(first + i / 2 * 8, word) & outputs.word(8 * j + pair + i % 2, word));
  });
}

}  // namespace stompp::cuda
