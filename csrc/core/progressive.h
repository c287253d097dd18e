// The progressive op: u' = M*sign(u) + (1 - M)*clip(u, -1, 1), with a mask of bits (1 = frozen) or none (all frozen).
// Gradient: soft entries pass g where |u| <= 1; frozen ones follow the surrogate.
#pragma once

#include <cstdint>

#include "core/float_types.h"
#include "core/parallel.h"
#include "core/status.h"

namespace stompp {

enum class Surrogate { kNone, kIdentity, kClip, kApproxSign };

struct Progressive {
  const void* u;               // [batch][n]
  const void* grad = nullptr;  // [batch][n], backward only
  void* out;                   // [batch][n]: u', or the gradient of u
  FloatType type;
  int64_t batch, n;
  const uint32_t* mask = nullptr;  // words_for(n), shared by the batch; nullptr: every entry is frozen
  Surrogate surrogate = Surrogate::kNone;
};

// What an implementation sees: `count` entries whose mask begins on a word.
struct ProgressiveRow {
  const void* u;
  const void* grad;
  void* out;
  FloatType type;
  int64_t count;
  const uint32_t* mask;
  Surrogate surrogate;
};

Status progressive_forward(const Progressive& args, const Parallel& pool);
Status progressive_backward(const Progressive& args, const Parallel& pool);

}  // namespace stompp
