#include "runtime/workers/team.h"

#include <algorithm>

#include "runtime/workers/threads.h"

#if STOMPP_HAS_THREADS
#include <atomic>
#include <condition_variable>
#include <system_error>
#include <thread>
#include <vector>
#endif

namespace stompp::runtime {

Parallel this_thread() {
  return {[](int64_t count, int64_t, Parallel::Body body, void* context) { body(0, count, context); }, 1};
}

#if STOMPP_HAS_THREADS

namespace {
thread_local Team* current = nullptr;
thread_local int current_threads = 1;
constexpr int kSpins = 2000;  // a kernel follows the one before within some microseconds
}  // namespace

struct Team::Shared {
  std::vector<std::thread> threads;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> turn{0};  // counts pieces of work
  std::atomic<int> working{0};    // threads besides the caller that are not done
  std::atomic<int64_t> next{0};   // the first item that nobody has taken
  bool ends = false;
  int wanted = 0;  // threads besides the caller that take part
  int64_t count = 0, range = 1;
  Parallel::Body body = nullptr;
  void* context = nullptr;

  void take_ranges() {
    for (int64_t begin; (begin = next.fetch_add(range)) < count;) body(begin, std::min(count, begin + range), context);
  }

  void serve(int index) {
    for (uint64_t seen = 0;;) {
      for (int i = 0; i < kSpins && turn.load(std::memory_order_acquire) == seen; ++i) {
      }
      bool mine;
      {
        std::unique_lock<std::mutex> lock(mutex);
        wake.wait(lock, [&] { return turn.load() != seen || ends; });
        if (ends) return;
        seen = turn.load();
        mine = index < wanted;
      }
      if (!mine) continue;
      take_ranges();
      working.fetch_sub(1, std::memory_order_release);
    }
  }
};

Team::Team() : shared_(new Shared) {}

Team::~Team() {
  {
    const std::lock_guard<std::mutex> lock(shared_->mutex);
    shared_->ends = true;
  }
  shared_->wake.notify_all();
  for (std::thread& thread : shared_->threads) thread.join();
}

void Team::grow(int threads) {
  Shared& s = *shared_;
  while (static_cast<int>(s.threads.size()) < threads - 1) {
    const int index = static_cast<int>(s.threads.size());
#if defined(__cpp_exceptions)
    try {
      s.threads.emplace_back([&s, index] { s.serve(index); });
    } catch (const std::system_error&) {
      return;
    }
#else
    s.threads.emplace_back([&s, index] { s.serve(index); });
#endif
  }
}

Team::Use::Use(Team* team, int threads) : pool_{&Team::run, 1} {
  pool_.threads = std::min(threads, static_cast<int>(team->shared_->threads.size()) + 1);
  current = team;
  current_threads = pool_.threads;
}

Team::Use::~Use() { current = nullptr; }

void Team::run(int64_t count, int64_t grain, Parallel::Body body, void* context) {
  const int64_t parts = std::min<int64_t>(current_threads, (count + grain - 1) / grain);
  if (parts <= 1) return body(0, count, context);
  Shared& s = *current->shared_;
  {
    const std::lock_guard<std::mutex> lock(s.mutex);
    s.count = count;
    s.range = std::max(grain, (count + parts - 1) / parts);
    s.body = body;
    s.context = context;
    s.next = 0;
    s.wanted = static_cast<int>(parts) - 1;
    s.working = s.wanted;
    s.turn.fetch_add(1, std::memory_order_release);
  }
  s.wake.notify_all();
  s.take_ranges();
  while (s.working.load(std::memory_order_acquire) > 0) std::this_thread::yield();
}

#else

struct Team::Shared {};
Team::Team() = default;
Team::~Team() = default;
void Team::grow(int) {}
Team::Use::Use(Team*, int) : pool_(this_thread()) {}
Team::Use::~Use() = default;

#endif

}  // namespace stompp::runtime
