// A product on the tiles of a machine, which the emulated twin of the instructions stands in for too.
#pragma once

#include "core/base/workers.h"
#include "core/isa/amx/plan.h"
#include "core/isa/amx/worker.h"

namespace stompp {
namespace amx {

template <class Machine>
Status multiply_on(const ProductKernels& kernels, const AnyRows& source, int64_t M, const PackedWeight& weight,
                   const Epilogue& epilogue, const Parallel& pool) {
  if (M == 0) return Status::ok();
  const Product<Machine> product = {{source, M, weight, epilogue, Machine::kLimits, pool.threads}, kernels};
  return run_tasks<Worker<Machine>>(product, pool);
}

}  // namespace amx
}  // namespace stompp
