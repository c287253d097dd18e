// Measures what an instruction set can do at most on this machine: ceilings.py prints and keeps it.
//   ceilings IMPLEMENTATION THREADS SECONDS LARGEST
// prints "operations NAME PER_SECOND" for the mixes of ceilings_mixes.h, and for the memory that each thread reads or
// copies, from 16 KiB to LARGEST bytes in powers of 4, "memory NAME BYTES BYTES_PER_SECOND". A copy's bytes are those
// read and those written. The machine must support IMPLEMENTATION. SECONDS are those of each figure.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "ceilings_mixes.h"

using namespace ceilings;

namespace {

constexpr InstructionSet kSets[] = {
    portable::kSet,
#if defined(__x86_64__)
    avx2::kSet,
    avx512::kSet,
#if STOMPP_HAS_AMX
    amx::kSet,
#endif
#elif defined(__aarch64__)
    neon::kSet,
#endif
};

constexpr int64_t kSmallest = 16 << 10;
constexpr size_t kPage = 2 << 20;
constexpr double kRepetition = 2e-4;  // short beside a time slice: that of most repetitions nobody else has a part of
constexpr size_t kAtLeast = 5;
constexpr int64_t kMostCalls = int64_t{1} << 30;  // where a compiler has left nothing to be timed

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Runs `count` calls of what a thread measures.
using Calls = std::function<void(int64_t count)>;

double seconds_of(const Calls& calls, int64_t count) {
  const double begin = seconds();
  calls(count);
  return seconds() - begin;
}

int64_t calls_of_a_repetition(const Calls& calls) {
  int64_t count = 1;
  while (seconds_of(calls, count) < kRepetition && count < kMostCalls) count *= 2;
  return count;
}

// Calls a second of all threads together: the sum of their medians, taken while all of them run.
double calls_per_second(const std::vector<Calls>& threads, double duration) {
  std::atomic<size_t> ready{0};
  std::vector<double> rates(threads.size());
  const auto measure = [&](size_t t) {
    const int64_t count = calls_of_a_repetition(threads[t]);
    ++ready;
    while (ready < threads.size()) std::this_thread::yield();
    std::vector<double> times;
    const double end = seconds() + duration;
    while (seconds() < end || times.size() < kAtLeast) times.push_back(seconds_of(threads[t], count));
    std::sort(times.begin(), times.end());
    rates[t] = static_cast<double>(count) / times[times.size() / 2];
  };
  std::vector<std::thread> started;
  for (size_t t = 0; t < threads.size(); ++t) started.emplace_back(measure, t);
  double sum = 0;
  for (size_t t = 0; t < threads.size(); ++t) {
    started[t].join();
    sum += rates[t];
  }
  return sum;
}

void print_operations(const char* name, const Mix& mix, size_t threads, double duration) {
  // A call of many turns: that it goes through a pointer does not count.
  constexpr int64_t kTurns = 1024;
  const std::vector<Calls> calls(threads, [&mix](int64_t count) { mix.run(count * kTurns); });
  std::printf("operations %s %.6g\n", name, calls_per_second(calls, duration) * mix.operations * kTurns);
}

struct Free {
  void operator()(char* memory) const { std::free(memory); }
};
using Memory = std::unique_ptr<char, Free>;

// Written to, so that there are pages behind it, large ones where the system has them. Null where there is no memory.
Memory memory_of(int64_t bytes) {
  const size_t size = (static_cast<size_t>(bytes) + kPage - 1) / kPage * kPage;
  Memory memory(static_cast<char*>(std::aligned_alloc(kPage, size)));
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (memory != nullptr) (void)madvise(memory.get(), size, MADV_HUGEPAGE);  // only advice
#endif
  if (memory != nullptr) std::memset(memory.get(), 1, size);
  return memory;
}

bool print_memory(const InstructionSet& set, size_t threads, double duration, int64_t bytes) {
  std::vector<Memory> memories;
  std::vector<Calls> reads, copies;
  for (size_t t = 0; t < threads; ++t) {
    memories.push_back(memory_of(bytes));
    char* memory = memories.back().get();
    if (memory == nullptr) return false;
    reads.push_back([&set, memory, bytes](int64_t count) {
      for (; count > 0; --count) set.read(memory, bytes);
    });
    copies.push_back([&set, memory, bytes](int64_t count) {
      for (; count > 0; --count) set.copy(memory, memory + bytes / 2, bytes / 2);
    });
  }
  const double size = static_cast<double>(bytes);
  std::printf("memory read %lld %.6g\n", static_cast<long long>(bytes), calls_per_second(reads, duration) * size);
  std::printf("memory copy %lld %.6g\n", static_cast<long long>(bytes), calls_per_second(copies, duration) * size);
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5 || std::atoi(argv[2]) < 1) return 2;
  const InstructionSet* set = std::find_if(std::begin(kSets), std::end(kSets), [argv](const InstructionSet& candidate) {
    return std::strcmp(candidate.implementation, argv[1]) == 0;
  });
  if (set == std::end(kSets)) return 2;
  const size_t threads = static_cast<size_t>(std::atoi(argv[2]));
  const double duration = std::atof(argv[3]);
  print_operations("binary", set->binary, threads, duration);
  print_operations("signed_sum", set->signed_sum, threads, duration);
  print_operations("fp32", set->fp32, threads, duration);
  for (int64_t bytes = kSmallest; bytes <= std::atoll(argv[4]); bytes *= 4)
    if (!print_memory(*set, threads, duration, bytes)) return 3;
  return 0;
}
