// The progressive op: u' = M*sign(u) + (1 - M)*clip(u, -1, 1), with a mask of bits (1 = frozen) or none (all frozen).
// Gradient: soft entries pass g where |u| <= 1; frozen ones follow the surrogate. But for approx_sign a gradient passes
// or it does not: the forward pass can write that as a gate, a bit an entry, and the backward pass then reads no u.
#pragma once

#include <cstdint>

#include "core/base/float_types.h"
#include "core/base/parallel.h"
#include "core/base/status.h"
#include "core/masks/refresh_mask.h"

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
  uint32_t* gate = nullptr;          // forward, where wanted: [batch][words_for(n)]; for approx_sign it takes the mask
  const DrawnMask* drawn = nullptr;  // forward of one row: its mask is drawn, not read
};

struct GateBackward {
  const void* grad;      // [batch][n]
  const uint32_t* gate;  // [batch][words_for(n)]
  void* out;             // [batch][n]: grad where the gate's bit is 1, else 0
  FloatType type;
  int64_t batch, n;
};

Status progressive_forward(const Progressive& args, const Parallel& pool);
Status progressive_backward(const Progressive& args, const Parallel& pool);
Status gate_backward(const GateBackward& args, const Parallel& pool);

}  // namespace stompp
