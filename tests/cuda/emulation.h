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

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "core/base/float_types.h"
#include "core/base/status.h"
#include "cuda/tile_descriptor.h"

#define __device__
#define __global__
#define __launch_bounds__(...)
#define threadIdx (::stompp::cuda::emulation::current().thread_index)
#define blockIdx (::stompp::cuda::emulation::current().block->index)
#define gridDim (::stompp::cuda::emulation::current().block->grid)

namespace stompp::cuda {

using Stream = void*;

// An mbarrier. It lies in the kernel's shared memory, where poison is no parity.
struct alignas(8) Barrier {
  uint8_t parity;    // of the present phase
  uint8_t arrivals;  // that end a phase
  uint8_t missing;   // of them, in this phase
  int32_t bytes;     // that are still expected
};

struct Size3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace emulation {

constexpr int kLanes = 32, kMostSharedBytes = 227 * 1024;
constexpr size_t kStackBytes = 32 * 1024, kOperandBytes = 64;

[[noreturn]] inline void fail(const char* message) {
  std::fprintf(stderr, "emulation: %s\n", message);
  std::exit(1);
}

// Threads that come together: a block at a barrier, a warp for an exchange of operands.
struct Meeting {
  int members = 0, arrived = 0, round = 0;
};

struct Warp {
  Meeting meeting;
  // Operands of two rounds: a lane may begin the next one before another has read the last.
  unsigned char operands[2][kLanes][kOperandBytes];
  const char* operation[2] = {nullptr, nullptr};
};

struct Copy {
  void* to;
  const void* from;
  int bytes;
  bool valid;

  void land() const {
    valid ? std::memcpy(to, from, static_cast<size_t>(bytes)) : std::memset(to, 0, static_cast<size_t>(bytes));
  }
};

struct BulkCopy {
  Copy copy;
  Barrier* barrier;
};

struct Block {
  Size3 index, grid;
  Meeting barrier, numbered_barriers[16];
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char[]> shared, published;  // the second as the asynchronous proxy sees it
  std::vector<BulkCopy> bulk_copies;                   // under way
  long progress = 0;                                   // arrivals, ends of phases and exits, to notice a deadlock
};

struct Fiber {
  Size3 thread_index;
  Block* block = nullptr;
  int lane = 0, warp = 0;
  bool done = false;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  std::function<void()> body;
  std::vector<std::pair<void*, int>> unpublished;  // in shared memory: where, and bytes
  bool registers_are_fenced = false;
  std::vector<std::vector<Copy>> groups = std::vector<std::vector<Copy>>(1);  // the last one is open
  std::vector<std::vector<std::function<void()>>> rounds = std::vector<std::vector<std::function<void()>>>(1);
};

struct Scheduler {
  ucontext_t context;
  Fiber* running = nullptr;
  std::mt19937 random{12345};
};

inline Scheduler& scheduler() {
  static Scheduler instance;
  return instance;
}

inline Fiber& current() { return *scheduler().running; }

inline void yield() { swapcontext(&current().context, &scheduler().context); }

inline void publish(const void* at, int bytes) {
  const Block& block = *current().block;
  const ptrdiff_t offset = static_cast<const unsigned char*>(at) - block.shared.get();
  std::memcpy(block.published.get() + offset, at, static_cast<size_t>(bytes));
}

inline void land_here(const Copy& copy) {
  copy.land();
  current().unpublished.emplace_back(copy.to, copy.bytes);
}

inline void meet(Meeting& meeting) {
  const int round = meeting.round;
  ++current().block->progress;
  if (++meeting.arrived == meeting.members) {
    meeting.arrived = 0;
    ++meeting.round;
    return;
  }
  while (meeting.round == round) yield();
}

// Every lane gives its operand and sees those of all; returns them as an array.
template <class T>
const T* exchange(const char* operation, const T& operand, T (&all)[kLanes]) {
  static_assert(sizeof(T) <= kOperandBytes, "operands fit");
  Fiber& fiber = current();
  Warp& warp = fiber.block->warps[static_cast<size_t>(fiber.warp)];
  const int slot = warp.meeting.round & 1;
  if (warp.meeting.arrived == 0) warp.operation[slot] = operation;
  if (std::strcmp(warp.operation[slot], operation) != 0) fail("lanes of a warp do different things");
  std::memcpy(warp.operands[slot][fiber.lane], &operand, sizeof(T));
  meet(warp.meeting);
  for (int lane = 0; lane < kLanes; ++lane) std::memcpy(&all[lane], warp.operands[slot][lane], sizeof(T));
  return all;
}

inline void enter() {
  Fiber& fiber = current();
  fiber.body();
  fiber.done = true;
  // Threads that have left are not waited for.
  Block& block = *fiber.block;
  ++block.progress;
  if (--block.barrier.members == block.barrier.arrived && block.barrier.members > 0) {
    block.barrier.arrived = 0;
    ++block.barrier.round;
  }
  swapcontext(&fiber.context, &scheduler().context);
}

// Lets some warps stand still: every other one, or pair, or four of them. In every second block for some turns, by
// chance; in the others always, but for a turn whenever the rest waits for them.
struct StandStill {
  unsigned run = 0, side = 0;  // of so many warps, none where it is 0
  int turns = 0;
  bool always = false, released = false;

  explicit StandStill(unsigned block) : always(block % 2 == 0) {
    if (always) choose(block / 2);
  }

  void choose(unsigned number) {
    run = 1u << number % 3;
    side = number / 3 % 2;
  }

  void begin_turn() {
    if (always || --turns >= 0) return;
    std::mt19937& random = scheduler().random;
    turns = static_cast<int>(random() % 40);
    choose(static_cast<unsigned>(random()));
    if (random() % 2 == 0) run = 0;
  }

  bool holds(int warp) const { return run != 0 && !released && static_cast<unsigned>(warp) / run % 2 == side; }

  // After a turn; returns whether it may have been in vain because some stood still.
  bool end_turn(bool in_vain) {
    const bool excused = run != 0 && !released;
    released = in_vain && excused;
    if (released && !always) run = 0;
    return excused;
  }
};

inline void run_block(Size3 index, Size3 grid, int threads, int shared_bytes, const std::function<void()>& body) {
  if (threads % kLanes != 0) fail("whole warps only");
  Block block;
  block.index = index;
  block.grid = grid;
  block.barrier.members = threads;
  block.warps.resize(static_cast<size_t>(threads / kLanes));
  for (Warp& warp : block.warps) warp.meeting.members = kLanes;
  for (auto* memory : {&block.shared, &block.published}) {
    memory->reset(new unsigned char[static_cast<size_t>(shared_bytes)]);
    std::memset(memory->get(), 0xCD, static_cast<size_t>(shared_bytes));
  }
  std::vector<Fiber> fibers(static_cast<size_t>(threads));
  std::vector<Fiber*> order;
  Scheduler& s = scheduler();
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[static_cast<size_t>(i)];
    fiber.thread_index.x = static_cast<unsigned>(i);
    fiber.thread_index.y = fiber.thread_index.z = 0;
    fiber.block = &block;
    fiber.lane = i % kLanes;
    fiber.warp = i / kLanes;
    fiber.body = body;
    fiber.stack.reset(new char[kStackBytes]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, enter, 0);
    order.push_back(&fiber);
  }
  static unsigned blocks = 0;
  StandStill still(blocks++);
  while (!order.empty()) {
    const long before = block.progress;
    still.begin_turn();
    std::shuffle(order.begin(), order.end(), s.random);
    for (Fiber* fiber : order) {
      if (still.holds(fiber->warp)) continue;
      s.running = fiber;
      swapcontext(&s.context, &fiber->context);
    }
    order.erase(std::remove_if(order.begin(), order.end(), [](Fiber* fiber) { return fiber->done; }), order.end());
    const bool in_vain = block.progress == before;
    if (!still.end_turn(in_vain) && in_vain) fail("deadlock: threads wait for others or for bytes that never come");
  }
  if (!block.bulk_copies.empty()) fail("a block ends before its bulk copies");
}

}  // namespace emulation

template <auto kKernel, int kSharedBytes = 0, class... Parameters>
Status launch(Size3 grid, int threads, Stream, const Parameters&... arguments) {
  static_assert(kSharedBytes <= emulation::kMostSharedBytes, "no GPU has more for a block");
  if (threads < 1 || threads > 1024 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
    emulation::fail("no GPU runs a grid of this size");
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x)
        emulation::run_block({x, y, z}, grid, threads, kSharedBytes, [&] { kKernel(arguments...); });
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
  ++current().block->progress;
}

inline void land(const BulkCopy& bulk) {
  check_barrier(bulk.barrier);
  bulk.copy.land();
  publish(bulk.copy.to, bulk.copy.bytes);
  bulk.barrier->bytes -= bulk.copy.bytes;
  if (bulk.barrier->bytes < 0) fail("a bulk copy brings more bytes than its barrier expects");
  end_phase_if_complete(bulk.barrier);
}

}  // namespace emulation

inline void init_barriers(Barrier* barriers, int count, int arrivals) {
  const uint8_t missing = static_cast<uint8_t>(arrivals);
  for (int i = 0; i < count; ++i) barriers[i] = {0, missing, missing, 0};
}

inline void expect_bytes(Barrier* barrier, int bytes) {
  emulation::check_barrier(barrier);
  if (barrier->missing == 0) emulation::fail("more threads arrive at a barrier in memory than it was made for");
  --barrier->missing;
  barrier->bytes += bytes;
  emulation::end_phase_if_complete(barrier);
}

// The hardware would let bytes come before they are expected; here they must not.
inline void copy_bulk(void* to, const void* from, int bytes, Barrier* barrier) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | static_cast<unsigned>(bytes)) % 16 != 0)
    emulation::fail("a bulk copy is not aligned");
  emulation::check_barrier(barrier);
  const emulation::BulkCopy bulk = {{to, from, bytes, true}, barrier};
  if (emulation::scheduler().random() % 2 == 0)
    emulation::land(bulk);
  else
    emulation::current().block->bulk_copies.push_back(bulk);
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
  for (const auto& [at, bytes] : emulation::current().unpublished) emulation::publish(at, bytes);
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
