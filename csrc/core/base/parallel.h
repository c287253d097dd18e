// The caller's thread pool. The core owns no threads: a binding passes torch's pool in, a test passes a plain loop.
#pragma once

#include <cstdint>

namespace stompp {

struct Parallel {
  using Body = void (*)(int64_t begin, int64_t end, void* context);

  // Runs body over [0, count) in ranges of at least `grain` items (the last may be shorter), on any threads.
  void (*run)(int64_t count, int64_t grain, Body body, void* context);
  int threads;
};

constexpr Parallel kThisThread = {
    [](int64_t count, int64_t, Parallel::Body body, void* context) { body(0, count, context); }, 1};

template <class F>
void parallel_for(const Parallel& pool, int64_t count, int64_t grain, const F& f) {
  if (count <= 0) return;
  pool.run(
      count, grain < 1 ? 1 : grain,
      [](int64_t begin, int64_t end, void* context) { (*static_cast<const F*>(context))(begin, end); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace stompp
