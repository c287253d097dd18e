// Threads of a cluster's blocks as fibers, and what they have: shared memory, copies under way, places where they meet.
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

namespace stompp::cuda {

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

struct Block;
struct Cluster;

struct BulkCopy {
  Copy copy;
  Barrier* barrier;
  Block* block;  // which the copy goes to
};

struct Block {
  Size3 index, grid;
  Cluster* cluster = nullptr;
  int rank = 0;     // in the cluster
  int threads = 0;  // that have not ended
  Meeting barrier, numbered_barriers[16];
  std::vector<Warp> warps;
  std::unique_ptr<unsigned char[]> shared, published;  // the second as the asynchronous proxy sees it
  std::vector<BulkCopy> bulk_copies;                   // under way to this block
};

// Blocks that run at once; mostly there is one.
struct Cluster {
  std::vector<Block> blocks;
  Meeting barrier;
  long progress = 0;  // arrivals, ends of phases and exits, to notice a deadlock
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
  bool arrived = false;                                                       // at the barrier of the cluster
  int cluster_round = 0;                                                      // of that arrival
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

inline Cluster& cluster() { return *current().block->cluster; }

inline void publish(const Block& block, const void* at, int bytes) {
  const ptrdiff_t offset = static_cast<const unsigned char*>(at) - block.shared.get();
  std::memcpy(block.published.get() + offset, at, static_cast<size_t>(bytes));
}

inline void land_here(const Copy& copy) {
  copy.land();
  current().unpublished.emplace_back(copy.to, copy.bytes);
}

inline void meet(Meeting& meeting) {
  const int round = meeting.round;
  ++cluster().progress;
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
  ++block.cluster->progress;
  --block.threads;
  if (fiber.arrived) fail("a thread ends before all of the cluster have come to a barrier");
  if (--block.barrier.members == block.barrier.arrived && block.barrier.members > 0) {
    block.barrier.arrived = 0;
    ++block.barrier.round;
  }
  swapcontext(&fiber.context, &scheduler().context);
}

// Lets some warps stand still: every other one, or pair, or four of them, and in a cluster every other block. In every
// second cluster for some turns, by chance; in the others always, but for a turn whenever the rest waits for them.
struct StandStill {
  unsigned run = 0, side = 0;  // of so many warps, none where it is 0
  const unsigned block_warps;  // where there are several blocks
  int turns = 0;
  bool always = false, released = false;

  StandStill(unsigned number, const Cluster& cluster)
      : block_warps(cluster.blocks.size() > 1 ? static_cast<unsigned>(cluster.blocks.front().warps.size()) : 0),
        always(number % 2 == 0) {
    if (always) choose(number / 2);
  }

  void choose(unsigned number) {
    run = block_warps != 0 ? block_warps : 1u << number / 2 % 3;
    side = number % 2;
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

inline void prepare_block(Block& block, int threads, int shared_bytes) {
  if (threads % kLanes != 0) fail("whole warps only");
  block.threads = threads;
  block.barrier.members = threads;
  block.warps.resize(static_cast<size_t>(threads / kLanes));
  for (Warp& warp : block.warps) warp.meeting.members = kLanes;
  for (auto* memory : {&block.shared, &block.published}) {
    memory->reset(new unsigned char[static_cast<size_t>(shared_bytes)]);
    std::memset(memory->get(), 0xCD, static_cast<size_t>(shared_bytes));
  }
}

inline void prepare_fiber(Fiber& fiber, Block& block, int thread, const std::function<void()>& body) {
  fiber.thread_index.x = static_cast<unsigned>(thread);
  fiber.thread_index.y = fiber.thread_index.z = 0;
  fiber.block = &block;
  fiber.lane = thread % kLanes;
  fiber.warp = thread / kLanes;
  fiber.body = body;
  fiber.stack.reset(new char[kStackBytes]);
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStackBytes;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, enter, 0);
}

// Lets fibers take turns to their ends.
inline void run_fibers(const Cluster& cluster, std::vector<Fiber*> order) {
  static unsigned clusters = 0;
  StandStill still(clusters++, cluster);
  Scheduler& s = scheduler();
  const int warps = static_cast<int>(cluster.blocks.front().warps.size());
  while (!order.empty()) {
    const long before = cluster.progress;
    still.begin_turn();
    std::shuffle(order.begin(), order.end(), s.random);
    for (Fiber* fiber : order) {
      if (still.holds(fiber->block->rank * warps + fiber->warp)) continue;
      s.running = fiber;
      swapcontext(&s.context, &fiber->context);
    }
    order.erase(std::remove_if(order.begin(), order.end(), [](Fiber* fiber) { return fiber->done; }), order.end());
    const bool in_vain = cluster.progress == before;
    if (!still.end_turn(in_vain) && in_vain) fail("deadlock: threads wait for others or for bytes that never come");
  }
}

// Runs the blocks from `first` on in x.
inline void run_cluster(Size3 first, Size3 grid, int blocks, int threads, int shared_bytes,
                        const std::function<void()>& body) {
  Cluster cluster;
  cluster.blocks.resize(static_cast<size_t>(blocks));
  cluster.barrier.members = blocks * threads;
  std::vector<Fiber> fibers(static_cast<size_t>(blocks * threads));
  std::vector<Fiber*> order;
  for (int rank = 0; rank < blocks; ++rank) {
    Block& block = cluster.blocks[static_cast<size_t>(rank)];
    block.index = {first.x + static_cast<unsigned>(rank), first.y, first.z};
    block.grid = grid;
    block.cluster = &cluster;
    block.rank = rank;
    prepare_block(block, threads, shared_bytes);
    for (int thread = 0; thread < threads; ++thread) {
      Fiber& fiber = fibers[static_cast<size_t>(rank * threads + thread)];
      prepare_fiber(fiber, block, thread, body);
      order.push_back(&fiber);
    }
  }
  run_fibers(cluster, order);
  for (const Block& block : cluster.blocks)
    if (!block.bulk_copies.empty()) fail("a block ends before its bulk copies");
}

}  // namespace emulation

}  // namespace stompp::cuda
