// A product on the tiles of a machine, which the emulated twin of the instructions stands in for too.
#pragma once

#include <atomic>

#include "core/isa/amx/plan.h"
#include "core/isa/amx/worker.h"

namespace stompp {
namespace amx {

template <class Machine>
Status multiply_on(const Implementation& implementation, const AnyRows& source, int64_t M, const PackedWeight& weight,
                   const Epilogue& epilogue, const Parallel& pool) {
  if (M == 0) return Status::ok();
  const Plan plan(source, M, weight, epilogue, Machine::kLimits, pool.threads);
  std::atomic<bool> out_of_memory{false};
  parallel_for(pool, plan.items(), 1, [&](int64_t begin, int64_t end) {
    Worker<Machine> worker(plan, implementation);
    if (worker.failed()) {
      out_of_memory = true;
      return;
    }
    Machine::Tiles::configure(TileBlock<typename Machine::Tiles>::shapes(plan.tile_rows));
    for (int64_t item = begin; item < end; ++item) worker.run(item);
    Machine::Tiles::release();
  });
  return out_of_memory ? Status::error("out of memory") : Status::ok();
}

}  // namespace amx
}  // namespace stompp
