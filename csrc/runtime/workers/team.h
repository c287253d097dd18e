// Threads that share the work of one call.
#pragma once

#include <memory>

#include "core/base/parallel.h"

// A browser gives a module of WebAssembly no threads unless it is compiled for them.
#if defined(__wasm__) && !defined(_REENTRANT)
#define STOMPP_HAS_THREADS 0
#else
#define STOMPP_HAS_THREADS 1
#include <mutex>
#endif

namespace stompp::runtime {

#if STOMPP_HAS_THREADS
using Mutex = std::mutex;
using Lock = std::lock_guard<std::mutex>;
#else
struct Mutex {};
struct Lock {
  explicit Lock(const Mutex&) {}
};
#endif

// The calling thread alone.
Parallel this_thread();

// Threads that sleep between calls. One call at a time uses a team.
class Team {
 public:
  Team();
  ~Team();

  // Makes the calling thread's work the team's while it lives: the core's pool has no place for a team of its own.
  class Use {
   public:
    // Takes so many threads, the caller's included, and fewer where the system gives none.
    Use(Team& team, int threads);
    ~Use();
    const Parallel& pool() const { return pool_; }

   private:
    Team* before_;
    Parallel pool_;
  };

 private:
  struct Shared;
  static void run(int64_t count, int64_t grain, Parallel::Body body, void* context);

  std::unique_ptr<Shared> shared_;
};

}  // namespace stompp::runtime
