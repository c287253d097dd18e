#include "core/masks/progressive.h"

#include "core/base/bits.h"
#include "core/masks/kernels.h"

namespace stompp {
namespace {

constexpr int64_t kChunk = 8192;  // entries of one task: a multiple of a word, small enough to stay in L1
static_assert(kChunk % kWordBits == 0, "chunks begin on a mask word");

// Calls f(element, count, batch, first) for chunks of at most kChunk entries that begin on a word of a row's bits.
template <class F>
void for_chunks(int64_t batch, int64_t n, const Parallel& pool, const F& f) {
  const int64_t chunks = ceil_div(n, kChunk);
  const int64_t per_task = chunks == 0 ? 1 : 4 * kChunk / (n < kChunk ? n : kChunk);
  parallel_for(pool, batch * chunks, per_task, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t row = item / chunks, first = item % chunks * kChunk;
      f(row * n + first, n - first < kChunk ? n - first : kChunk, row, first);
    }
  });
}

Status run(const Progressive& args, void (*MaskKernels::*kernel)(const ProgressiveRow&), const Parallel& pool) {
  const MaskKernels* kernels = active_mask_kernels();
  if (kernels == nullptr) return no_implementation();
  for_chunks(args.batch, args.n, pool, [&](int64_t element, int64_t count, int64_t batch, int64_t first) {
    const int64_t at = element * size_of(args.type), word = first / kWordBits;
    ProgressiveRow row = {};
    row.u = static_cast<const char*>(args.u) + at;
    row.grad = args.grad == nullptr ? nullptr : static_cast<const char*>(args.grad) + at;
    row.out = static_cast<char*>(args.out) + at;
    row.type = args.type;
    row.count = count;
    row.mask = args.mask == nullptr ? nullptr : args.mask + word;
    row.surrogate = args.surrogate;
    row.gate = args.gate == nullptr ? nullptr : args.gate + batch * words_for(args.n) + word;
    row.drawn = args.drawn;
    row.first_word = word;
    (kernels->*kernel)(row);
  });
  return Status::ok();
}

}  // namespace

Status progressive_forward(const Progressive& args, const Parallel& pool) {
  return run(args, &MaskKernels::progressive_forward, pool);
}

Status progressive_backward(const Progressive& args, const Parallel& pool) {
  return run(args, &MaskKernels::progressive_backward, pool);
}

Status gate_backward(const GateBackward& args, const Parallel& pool) {
  const MaskKernels* kernels = active_mask_kernels();
  if (kernels == nullptr) return no_implementation();
  for_chunks(args.batch, args.n, pool, [&](int64_t element, int64_t count, int64_t batch, int64_t first) {
    const int64_t at = element * size_of(args.type);
    kernels->gate_backward({static_cast<const char*>(args.grad) + at,
                            args.gate + batch * words_for(args.n) + first / kWordBits,
                            static_cast<char*>(args.out) + at, args.type, count});
  });
  return Status::ok();
}

}  // namespace stompp
