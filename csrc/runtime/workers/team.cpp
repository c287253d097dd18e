#include "runtime/workers/team.h"

#include <algorithm>

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
constexpr int kSpins = 2000;  // a kernel follows the one before within some microseconds
}  // namespace

struct Team::Shared {
  std::vector<std::thread> threads;
  int in_use = 1;  // threads of the call under way, the caller's included
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

  void grow(int count) {
    try {
      while (static_cast<int>(threads.size()) < count - 1)
        threads.emplace_back([this, index = static_cast<int>(threads.size())] { serve(index); });
    } catch (const std::system_error&) {  // no more threads
    }
    in_use = std::min(count, static_cast<int>(threads.size()) + 1);
  }
};

Team::Team() : shared_(new Shared) {}

Team::~Team() {
  {
    const Lock lock(shared_->mutex);
    shared_->ends = true;
  }
  shared_->wake.notify_all();
  for (std::thread& thread : shared_->threads) thread.join();
}

Team::Use::Use(Team& team, int threads) : before_(current) {
  team.shared_->grow(threads);
  pool_ = {&Team::run, team.shared_->in_use};
  current = &team;
}

Team::Use::~Use() { current = before_; }

void Team::run(int64_t count, int64_t grain, Parallel::Body body, void* context) {
  Shared& s = *current->shared_;
  const int64_t parts = std::min<int64_t>(s.in_use, (count + grain - 1) / grain);
  if (parts <= 1) return body(0, count, context);
  {
    const Lock lock(s.mutex);
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
Team::Use::Use(Team&, int) : before_(nullptr), pool_(this_thread()) {}
Team::Use::~Use() = default;

#endif

}  // namespace stompp::runtime
