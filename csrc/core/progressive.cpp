#include "core/progressive.h"

#include "core/bits.h"
#include "core/dispatch.h"

namespace stompp {
namespace {

constexpr int64_t kChunk = 8192;  // entries of one task: a multiple of a word, small enough to stay in L1
static_assert(kChunk % kWordBits == 0, "chunks begin on a mask word");

Status run(const Progressive& args, void (*Implementation::*kernel)(const ProgressiveRow&), const Parallel& pool) {
  const Implementation* implementation = active_implementation();
  if (implementation == nullptr) return no_implementation();
  const int64_t chunks = ceil_div(args.n, kChunk), size = size_of(args.type);
  const int64_t per_task = chunks == 0 ? 1 : 4 * kChunk / (args.n < kChunk ? args.n : kChunk);
  parallel_for(pool, args.batch * chunks, per_task, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t first = item % chunks * kChunk, at = (item / chunks * args.n + first) * size;
      ProgressiveRow row = {};
      row.u = static_cast<const char*>(args.u) + at;
      row.grad = args.grad == nullptr ? nullptr : static_cast<const char*>(args.grad) + at;
      row.out = static_cast<char*>(args.out) + at;
      row.type = args.type;
      row.count = args.n - first < kChunk ? args.n - first : kChunk;
      row.mask = args.mask == nullptr ? nullptr : args.mask + first / kWordBits;
      row.surrogate = args.surrogate;
      (implementation->*kernel)(row);
    }
  });
  return Status::ok();
}

}  // namespace

Status progressive_forward(const Progressive& args, const Parallel& pool) {
  return run(args, &Implementation::progressive_forward, pool);
}

Status progressive_backward(const Progressive& args, const Parallel& pool) {
  return run(args, &Implementation::progressive_backward, pool);
}

}  // namespace stompp
