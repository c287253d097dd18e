// Comparisons of four lanes to bits.
#pragma once

#include "core/isa/neon/neon.h"

#if defined(__aarch64__)

#include <arm_neon.h>

namespace stompp {
namespace neon {

constexpr uint32_t kLaneBits[4] = {1, 2, 4, 8};

inline uint32_t lane_bits(uint32x4_t comparison) { return vaddvq_u32(vandq_u32(comparison, vld1q_u32(kLaneBits))); }

}  // namespace neon
}  // namespace stompp

#endif
