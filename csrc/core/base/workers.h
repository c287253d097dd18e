// Loops over tasks whose threads need memory of their own.
#pragma once

#include <atomic>
#include <cstdint>

#include "core/base/parallel.h"
#include "core/base/status.h"

namespace stompp {

// Runs tasks 0 .. job.tasks() - 1 in ranges of at least `grain` tasks, each on a Worker(job) of its own. The worker's
// failed() says that it got no memory.
template <class Worker, class Job>
Status run_tasks(const Job& job, const Parallel& pool, int64_t grain = 1) {
  std::atomic<bool> out_of_memory{false};
  parallel_for(pool, job.tasks(), grain, [&](int64_t begin, int64_t end) {
    Worker worker(job);
    for (int64_t task = begin; task < end && !worker.failed(); ++task) worker.run(task);
    if (worker.failed()) out_of_memory = true;
  });
  return out_of_memory ? Status::error("out of memory") : Status::ok();
}

}  // namespace stompp
