// Threads that share the work of one call.
#pragma once

#include <memory>

#include "core/base/parallel.h"

namespace stompp::runtime {

// The calling thread alone.
Parallel this_thread();

// Threads that sleep between calls. One call at a time uses a team.
class Team {
 public:
  Team();
  ~Team();

  // Has at least so many threads, the caller's included; fewer where the system gives none.
  void grow(int threads);

  // Runs f with a pool of `threads` threads of this team, in whose ranges the core's work is cut.
  template <class F>
  auto with(int threads, const F& f) {
    const Use use(this, threads);
    return f(use.pool());
  }

 private:
  struct Shared;
  // While it lives, the calling thread's work is the team's: the core's pool has no place for a team of its own.
  class Use {
   public:
    Use(Team* team, int threads);
    ~Use();
    Parallel pool() const { return pool_; }

   private:
    Parallel pool_;
  };
  static void run(int64_t count, int64_t grain, Parallel::Body body, void* context);

  std::unique_ptr<Shared> shared_;
};

}  // namespace stompp::runtime
