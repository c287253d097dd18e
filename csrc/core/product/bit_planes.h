// Counts as bit planes: bit i of word j of plane p is bit p of the count that belongs to bit i of word j. Adding a word
// to 32 counts is then a few logical operations, and so is comparing 32 counts with 32 limits.
#pragma once

#include <cstdint>

namespace stompp {

constexpr int64_t kPlaneWords = 224;  // words of a plane: 28 KB of counts, once they are integers
constexpr int kMaxPlanes = 31;

// Returns how many planes counts up to n need.
constexpr int planes_for(int64_t n) {
  int planes = 0;
  for (; n > 0; n >>= 1) ++planes;
  return planes;
}

// How many taps differ from their weights is counted for each of `words` words of bits.
struct TapBlock {
  const uint32_t* const* x;        // [taps], each to `words` words
  const uint32_t* const* weights;  // the same
  int64_t taps, words;             // words <= kPlaneWords
  int plane_count;                 // planes_for(taps)
  uint32_t* planes;                // out: [plane_count][kPlaneWords]
};

// Bit i of at_least[j] = count >= limit, both as planes.
struct PlaneComparison {
  const uint32_t* planes;
  const uint32_t* limits;  // [plane_count][kPlaneWords]
  int64_t words;
  int plane_count;
  uint32_t* at_least;  // out: [words]
};

}  // namespace stompp
