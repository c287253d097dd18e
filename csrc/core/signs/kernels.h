// What packing needs from an instruction set.
#pragma once

#include <cstdint>

#include "core/base/float_types.h"
#include "core/signs/pack.h"

namespace stompp {

struct PackKernels {
  // The sign bits of K consecutive elements, as words_for(K) words with a zero tail.
  void (*pack_row)(const void* x, FloatType type, int64_t K, uint32_t* words);

  // The same for limits; see pack.h.
  void (*pack_outside)(const void* x, FloatType type, const Limits& limits, int64_t K, uint32_t* words);

  // Both for pixels [begin, end) of an image whose channels are planes; see pack.h.
  void (*pack_planes)(const Planes& planes, int64_t begin, int64_t end);

  // The inverse: +1 or -1 for each of K bits.
  void (*unpack_row)(const uint32_t* words, FloatType type, int64_t K, void* out);
};

// The kernels of the instruction set that runs, or null where none can.
const PackKernels* active_pack_kernels();

}  // namespace stompp
