#include "core/isa/amx/product.h"

#include "core/isa/amx/amx.h"

#if STOMPP_HAS_AMX

namespace stompp {
namespace amx {
namespace {

struct Processor {
  using Tiles = ProcessorTiles;
  using Expand = Expansion;
  static constexpr Limits kLimits = kProcessorLimits;
};

}  // namespace

Status multiply(const ProductKernels& kernels, const AnyRows& source, int64_t M, const PackedWeight& weight,
                const Epilogue& epilogue, const Parallel& pool) {
  return multiply_on<Processor>(kernels, source, M, weight, epilogue, pool);
}

}  // namespace amx
}  // namespace stompp

#endif
