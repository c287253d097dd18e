// Tasks that need memory of their own beside them.
#pragma once

#include <atomic>
#include <cstdint>

#include "core/base/parallel.h"
#include "core/base/status.h"

namespace stompp {

// Runs tasks 0 .. job.tasks() - 1, ranges of them on a Worker(job) each. Its failed() says that it got no memory.
template <class Worker, class Job>
Status run_tasks(const Job& job, const Parallel& pool) {
  std::atomic<bool> out_of_memory{false};
  parallel_for(pool, job.tasks(), 1, [&](int64_t begin, int64_t end) {
    Worker worker(job);
    if (worker.failed()) out_of_memory = true;
    for (int64_t task = begin; task < end && !worker.failed(); ++task) worker.run(task);
  });
  return out_of_memory ? Status::error("out of memory") : Status::ok();
}

}  // namespace stompp
