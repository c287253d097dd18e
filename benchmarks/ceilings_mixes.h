// The instruction mixes of the product kernels, of the signed sums and of fp32 products, for each instruction set, with
// all operands in registers: no loads, no preparation, no tails, no epilogue. And loops that read and copy memory.
//
// Operands that never change would let a compiler take instructions out of the loop, and constants let it choose
// simpler ones. STOMPP_OPAQUE, which emits nothing, makes it believe that a register has changed.
#pragma once

#include <cstdint>

#include "core/isa/amx/amx.h"
#include "core/isa/amx/permission.h"
#include "core/isa/amx/tiles.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define STOMPP_OPAQUE(value) __asm__ volatile("" : "+v"(value))
#elif defined(__aarch64__)
#include <arm_neon.h>
#define STOMPP_OPAQUE(value) __asm__ volatile("" : "+w"(value))
#else
#error "say what constraint of inline assembly stands for a vector register here"
#endif

namespace ceilings {

// Runs a mix again and again. The last results must be made opaque too, or nothing would be computed.
struct Mix {
  void (*run)(int64_t turns);
  double operations;  // multiplications and additions of one turn
};

struct InstructionSet {
  const char* implementation;  // whose kernels have these mixes
  Mix binary, signed_sum, fp32;
  // `bytes` is a multiple of 1024.
  void (*read)(const char* from, int64_t bytes);
  void (*copy)(const char* from, char* to, int64_t bytes);
};

// Bodies of loops over memory: of `Vector`s, 8 in a row.
#define STOMPP_READ_LOOP(Vector)                                                   \
  for (int64_t at = 0; at < bytes; at += 8 * static_cast<int64_t>(sizeof(Vector))) \
    _Pragma("GCC unroll 8") for (int i = 0; i < 8; ++i) {                          \
      Vector v = reinterpret_cast<const Vector*>(from + at)[i];                    \
      STOMPP_OPAQUE(v);                                                            \
    }
#define STOMPP_COPY_LOOP(Vector)                                                   \
  for (int64_t at = 0; at < bytes; at += 8 * static_cast<int64_t>(sizeof(Vector))) \
    _Pragma("GCC unroll 8") for (int i = 0; i < 8; ++i) {                          \
      Vector v = reinterpret_cast<const Vector*>(from + at)[i];                    \
      STOMPP_OPAQUE(v);                                                            \
      reinterpret_cast<Vector*>(to + at)[i] = v;                                   \
    }

namespace portable {

using Words = uint32_t __attribute__((vector_size(16), may_alias));
using Floats = float __attribute__((vector_size(16), may_alias));
constexpr int kSums = 8;  // enough to hide how long an addition takes

#if defined(__x86_64__)
#define STOMPP_POPCNT __attribute__((target("popcnt")))
#else
#define STOMPP_POPCNT
#endif

// XOR, popcount and addition of 64 products.
STOMPP_POPCNT inline void binary(int64_t turns) {
  uint64_t counts[kSums] = {}, a = 0x0123456789abcdef, w = 0xfedcba9876543210;
  for (; turns > 0; --turns)
#pragma GCC unroll 8
    for (int i = 0; i < kSums; ++i) {
      __asm__ volatile("" : "+r"(w));
      counts[i] += static_cast<uint64_t>(__builtin_popcountll(a ^ w));
      __asm__ volatile("" : "+r"(counts[i]));
    }
}

// XOR and addition of 4 products.
inline void signed_sum(int64_t turns) {
  Floats sums[kSums] = {};
  Words x = Words{} + 0x3f800000u, signs = {0, 1u << 31, 0, 1u << 31};
  for (; turns > 0; --turns)
#pragma GCC unroll 8
    for (int i = 0; i < kSums; ++i) {
      STOMPP_OPAQUE(signs);
      sums[i] += reinterpret_cast<Floats>(x ^ signs);
      STOMPP_OPAQUE(sums[i]);
    }
}

// Multiplication and addition of 4 products.
inline void fp32(int64_t turns) {
  Floats sums[kSums] = {}, x = {1, 2, 3, 4}, y = {1, 1, 1, 1};
  for (; turns > 0; --turns)
#pragma GCC unroll 8
    for (int i = 0; i < kSums; ++i) {
      STOMPP_OPAQUE(y);
      sums[i] += x * y;
      STOMPP_OPAQUE(sums[i]);
    }
}

inline void read(const char* from, int64_t bytes) { STOMPP_READ_LOOP(Words) }
inline void copy(const char* from, char* to, int64_t bytes) { STOMPP_COPY_LOOP(Words) }

constexpr InstructionSet kSet = {
    "scalar", {binary, 2.0 * 64 * kSums}, {signed_sum, 2.0 * 4 * kSums}, {fp32, 2.0 * 4 * kSums}, read, copy};

}  // namespace portable

#if defined(__x86_64__)

namespace avx2 {

#define STOMPP_AVX2 __attribute__((target("avx2,fma")))
constexpr int kPanels = 4, kSums = 12;

// See csrc/core/isa/avx2/nibble_lookup.h: for 768 products three lookups, four additions and a shift.
STOMPP_AVX2 inline void binary(int64_t turns) {
  __m256i all[kPanels] = {}, shifted[kPanels] = {}, tables[3] = {}, nibbles[3] = {};
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) STOMPP_OPAQUE(tables[i]);
  for (; turns > 0; --turns)
#pragma GCC unroll 4
    for (int p = 0; p < kPanels; ++p) {
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) STOMPP_OPAQUE(nibbles[i]);
      __m256i sum = _mm256_shuffle_epi8(tables[0], nibbles[0]);
      sum = _mm256_add_epi8(sum, _mm256_shuffle_epi8(tables[1], nibbles[1]));
      sum = _mm256_add_epi8(sum, _mm256_shuffle_epi8(tables[2], nibbles[2]));
      all[p] = _mm256_add_epi8(all[p], sum);
      shifted[p] = _mm256_add_epi8(shifted[p], _mm256_srli_epi16(sum, 4));
      STOMPP_OPAQUE(all[p]);
      STOMPP_OPAQUE(shifted[p]);
    }
}

// See csrc/core/isa/avx2/signed_sum.cpp: a lookup and an addition for 3 inputs of 8 outputs. That weights are shifted
// on is left out: rows share it.
STOMPP_AVX2 inline void signed_sum(int64_t turns) {
  __m256 sums[kSums] = {}, table = _mm256_set1_ps(1.0f);
  STOMPP_OPAQUE(table);
  __m256i bits = _mm256_setzero_si256();
  for (; turns > 0; --turns)
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) {
      STOMPP_OPAQUE(bits);
      sums[i] = _mm256_add_ps(sums[i], _mm256_permutevar8x32_ps(table, bits));
      STOMPP_OPAQUE(sums[i]);
    }
}

STOMPP_AVX2 inline void fp32(int64_t turns) {
  __m256 sums[kSums] = {}, x = _mm256_set1_ps(1.0f), y = _mm256_set1_ps(2.0f);
  STOMPP_OPAQUE(x);  // a multiplication by 1 is none
  for (; turns > 0; --turns)
#pragma GCC unroll 12
    for (int i = 0; i < kSums; ++i) {
      sums[i] = _mm256_fmadd_ps(x, y, sums[i]);
      STOMPP_OPAQUE(sums[i]);
    }
}

STOMPP_AVX2 inline void read(const char* from, int64_t bytes){STOMPP_READ_LOOP(__m256i)} STOMPP_AVX2
    inline void copy(const char* from, char* to, int64_t bytes) {
  STOMPP_COPY_LOOP(__m256i)
}

constexpr InstructionSet kSet = {
    "avx2", {binary, 2.0 * 768 * kPanels}, {signed_sum, 2.0 * 24 * kSums}, {fp32, 2.0 * 8 * kSums}, read, copy};

}  // namespace avx2

namespace avx512 {

#define STOMPP_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vpopcntdq,avx2,fma")))
constexpr int kSums = 16;

// See csrc/core/isa/avx512/multiply_block.cpp: XOR, popcount and addition of 512 products.
STOMPP_AVX512 inline void binary(int64_t turns) {
  __m512i counts[kSums] = {}, a = _mm512_set1_epi64(1), w = _mm512_set1_epi64(2);
  for (; turns > 0; --turns)
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) {
      STOMPP_OPAQUE(w);
      counts[i] = _mm512_add_epi64(counts[i], _mm512_popcnt_epi64(_mm512_xor_si512(a, w)));
      STOMPP_OPAQUE(counts[i]);
    }
}

// See csrc/core/isa/avx512/signed_sum.cpp: a lookup and an addition for 4 inputs of 16 outputs, without the shifts.
STOMPP_AVX512 inline void signed_sum(int64_t turns) {
  __m512 sums[kSums] = {}, table = _mm512_set1_ps(1.0f);
  STOMPP_OPAQUE(table);
  __m512i bits = _mm512_setzero_si512();
  for (; turns > 0; --turns)
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) {
      STOMPP_OPAQUE(bits);
      sums[i] = _mm512_add_ps(sums[i], _mm512_maskz_permutexvar_ps(0xffff, bits, table));
      STOMPP_OPAQUE(sums[i]);
    }
}

STOMPP_AVX512 inline void fp32(int64_t turns) {
  __m512 sums[kSums] = {}, x = _mm512_set1_ps(1.0f), y = _mm512_set1_ps(2.0f);
  STOMPP_OPAQUE(x);  // a multiplication by 1 is none
  for (; turns > 0; --turns)
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) {
      sums[i] = _mm512_fmadd_ps(x, y, sums[i]);
      STOMPP_OPAQUE(sums[i]);
    }
}

STOMPP_AVX512 inline void read(const char* from, int64_t bytes){STOMPP_READ_LOOP(__m512i)} STOMPP_AVX512
    inline void copy(const char* from, char* to, int64_t bytes) {
  STOMPP_COPY_LOOP(__m512i)
}

constexpr InstructionSet kSet = {
    "avx512", {binary, 2.0 * 512 * kSums}, {signed_sum, 2.0 * 64 * kSums}, {fp32, 2.0 * 16 * kSums}, read, copy};

}  // namespace avx512

#if STOMPP_HAS_AMX

namespace amx {

using Tiles = stompp::amx::ProcessorTiles;
constexpr int kSums = 4;

// See csrc/core/isa/amx/tiles.h: products of 16 x 64 and 64 x 16 bytes, each a bit. Everything else is AVX-512's.
inline void binary(int64_t turns) {
  static const bool permitted = stompp::amx::request_tiles();
  if (!permitted) return;
  Tiles::configure(stompp::amx::TileBlock<Tiles>::shapes(stompp::amx::kTileRows));
  for (; turns > 0; --turns) {
    Tiles::add_products<0, 4, 6>();
    Tiles::add_products<1, 4, 7>();
    Tiles::add_products<2, 5, 6>();
    Tiles::add_products<3, 5, 7>();
  }
  Tiles::release();
}

constexpr InstructionSet kSet = {
    "amx",       {binary, 2.0 * 16 * 64 * 16 * kSums}, avx512::kSet.signed_sum, avx512::kSet.fp32, avx512::read,
    avx512::copy};

}  // namespace amx

#endif

#elif defined(__aarch64__)

namespace neon {

constexpr int kSums = 16;

// See csrc/core/isa/neon/multiply_block.cpp: XOR, popcount and addition of 128 products.
inline void binary(int64_t turns) {
  uint8x16_t counts[kSums] = {}, a = vdupq_n_u8(1), w = vdupq_n_u8(2);
  for (; turns > 0; --turns)
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) {
      STOMPP_OPAQUE(w);
      counts[i] = vaddq_u8(counts[i], vcntq_u8(veorq_u8(a, w)));
      STOMPP_OPAQUE(counts[i]);
    }
}

inline void fp32(int64_t turns) {
  float32x4_t sums[kSums] = {}, x = vdupq_n_f32(1.0f), y = vdupq_n_f32(2.0f);
  STOMPP_OPAQUE(x);  // a multiplication by 1 is none
  for (; turns > 0; --turns)
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) {
      sums[i] = vfmaq_f32(sums[i], x, y);
      STOMPP_OPAQUE(sums[i]);
    }
}

constexpr InstructionSet kSet = {
    "neon",        {binary, 2.0 * 128 * kSums}, portable::kSet.signed_sum, {fp32, 2.0 * 4 * kSums}, portable::read,
    portable::copy};

}  // namespace neon

#endif

}  // namespace ceilings
