// The bit contract, in one place.
//
// A value of {-1, +1} is one bit: 1 means -1, that is `x < 0`; 0 means +1. So sign(0) = sign(-0.0) = +1, and NaN,
// which is not below zero, packs as +1. Bits are LSB first in little-endian 32-bit words, along features or (NHWC)
// channels. K counts elements; the tail bits of the last word of a row are 0.
#pragma once

#include <cstdint>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "stompp_kernels reads packed words as bytes and needs a little-endian target"
#endif

// Without IEEE arithmetic NaN packs as either bit, and epilogues differ between instruction sets.
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__ > 0) ||         \
    defined(__NO_SIGNED_ZEROS__) || defined(__ASSOCIATIVE_MATH__) || defined(__RECIPROCAL_MATH__) || \
    (defined(__FLT_EVAL_METHOD__) && __FLT_EVAL_METHOD__ == 2)
#error "stompp_kernels needs IEEE 754 arithmetic: compile without -ffast-math, -Ofast, -mfpmath=387 and their like"
#endif

// Kernels carry target attributes and are dispatched at run time. A distribution may require x86-64-v3 of all machines;
// what is beyond it comes from a flag for one machine.
#if defined(__AVX512F__) || defined(__AVXVNNI__) || defined(__GFNI__) || defined(__VAES__) || defined(__SHA__)
#error "stompp_kernels picks instructions at run time: compile without -march=native, -mavx512f and their like"
#endif

namespace stompp {

constexpr int kWordBits = 32;
constexpr int64_t kWordBytes = 4;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return a / b + (a % b > 0 ? 1 : 0); }  // no overflow
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }
constexpr int64_t words_for(int64_t K) { return ceil_div(K, kWordBits); }
constexpr int64_t bytes_for(int64_t K) { return ceil_div(K, 8); }

// Returns ones in the bits that word `index` of a row of K elements uses.
constexpr uint32_t valid_bits(int64_t K, int64_t index) {
  const int64_t left = K - index * kWordBits;
  return left >= kWordBits ? 0xffffffffu : left <= 0 ? 0u : (1u << left) - 1u;
}

// Writes `count` bits, the others of `bits` being 0, from bit `shift` of *out on. Where they are not all that a word
// holds (groups whose outputs are no multiple of 32 share words) they are added to what stands there.
inline void put_bits(uint32_t* out, int64_t shift, bool whole_word, int64_t count, uint32_t bits) {
  if (whole_word) {
    *out = bits;
    return;
  }
  out[0] |= bits << shift;
  if (shift != 0 && shift + count > kWordBits) out[1] |= bits >> (kWordBits - shift);
}

inline int popcount32(uint32_t x) {
  // This uses no builtin: without -mpopcnt one is a library call, and this form vectorizes with plain SSE2 or NEON.
  x = x - ((x >> 1) & 0x55555555u);
  x = (x & 0x33333333u) + ((x >> 2) & 0x33333333u);
  x = (x + (x >> 4)) & 0x0f0f0f0fu;
  return static_cast<int>((x * 0x01010101u) >> 24);
}

}  // namespace stompp
