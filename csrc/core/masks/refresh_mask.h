// Soft refresh of a mask: each entry is drawn again with probability 1/r from Bernoulli(p).
//
// Entry i uses word i % 4 of Philox4x32-10 with
//   key     (low word of seed, tensor_id)
//   counter (i / 4, high word of seed, low word of step, high word of step)
// and becomes 1 where that word is below p * 2^32 / r, else 0 where it is below 2^32 / r, else it stays. The stream
// depends on nothing else: not on threads, devices or what was drawn before. A mask that is drawn whole, in the
// progressive op, has the same words and a 1 where they are below p * 2^32.
#pragma once

#include <cstdint>

#include "core/base/parallel.h"
#include "core/base/status.h"

namespace stompp {

// The random words of one tensor at one step.
struct RandomStream {
  uint64_t seed;
  uint32_t tensor_id;
  uint64_t step;
};

struct RefreshMask {
  int64_t n;              // entries
  uint64_t one_below;     // of 2^32
  uint64_t redraw_below;  // of 2^32
  RandomStream stream;
};

struct DrawnMask {
  uint64_t one_below;  // of 2^32
  RandomStream stream;
};

// Checks n >= 0, 0 <= p <= 1 and r >= 1.
Status make_refresh(int64_t n, double p, double r, uint64_t seed, uint32_t tensor_id, uint64_t step,
                    RefreshMask* refresh);

// words: [words_for(n)], tail bits stay 0.
Status refresh_mask(const RefreshMask& refresh, uint32_t* words, const Parallel& pool);

}  // namespace stompp
