// The ways to multiply bits, one for each family of instructions.
//
// multiply(c, rows, weights) adds a block's products to the accumulators of a warp: c[i][j][0..1] and [2..3] are rows g
// and g + 8 of row tile i, with g the thread's quad, times two outputs of tile j. rows(i, k) and weights(j) load
// fragments of half k of the block and of all of it. kSharedBytes is the shared memory that a block has on every GPU
// which runs it (CUDA Programming Guide, "Technical Specifications per Compute Capability"). kBlocks is how many
// blocks, a cluster, copy the same weights together.
#pragma once

#include "cuda/platform.cuh"

namespace stompp::cuda {

// What ldmatrix leaves with a lane. Of 16 rows: words of rows g and g + 8 in chunk 2 k, then in chunk 2 k + 1, which is
// what mma.m16n8k256 takes. Of 8 outputs: a word of each of the block's four chunks.
struct Fragment {
  uint32_t words[4];
};

template <int kRowTiles, class Rows>
__device__ inline void load_rows(Fragment (&a)[kRowTiles][2], const Rows& rows) {
#pragma unroll
  for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
    for (int k = 0; k < 2; ++k) a[i][k] = rows(i, k);
}

template <class Mma>
struct ByHalves {
  static constexpr int kBlocks = 1;

  template <int kRowTiles, int kOutputTiles, class Rows, class Weights>
  __device__ static void multiply(int (&c)[kRowTiles][kOutputTiles][4], const Rows& rows, const Weights& weights) {
    Fragment a[kRowTiles][2];
    load_rows(a, rows);
#pragma unroll
    for (int j = 0; j < kOutputTiles; ++j) {
      const Fragment w = weights(j);
#pragma unroll
      for (int k = 0; k < 2; ++k)
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i) Mma::multiply_half(c[i][j], a[i][k], w.words[2 * k], w.words[2 * k + 1]);
    }
  }
};

struct AndMma : ByHalves<AndMma> {
  static constexpr bool kAnd = true, kWarpGroup = false;
  static constexpr int kSharedBytes = 99 * 1024;  // 8.6, 8.9

  __device__ static void multiply_half(int (&c)[4], const Fragment& a, uint32_t first, uint32_t second) {
    const uint32_t b[2] = {first, second};
    mma_and_16x8x256(c, a.words, b);
  }
};

struct XorMma : ByHalves<XorMma> {
  static constexpr bool kAnd = false, kWarpGroup = false;
  static constexpr int kSharedBytes = 64 * 1024;  // 7.5

  __device__ static void multiply_half(int (&c)[4], const Fragment& a, uint32_t first, uint32_t second) {
    mma_xor_8x8x128(c[0], c[1], a.words[0], first);
    mma_xor_8x8x128(c[2], c[3], a.words[1], first);
    mma_xor_8x8x128(c[0], c[1], a.words[2], second);
    mma_xor_8x8x128(c[2], c[3], a.words[3], second);
  }
};

// On bytes of 0 and 1, where the tensor cores know no bits: bits s, s + 8, s + 16 and s + 24 of a word are four bytes
// at the cost of a shift and a mask, and 32 bits of K a lane are four multiplications.
struct ByteMma {
  static constexpr bool kAnd = true, kWarpGroup = false;
  static constexpr int kBlocks = 1;
  static constexpr int kSharedBytes = 99 * 1024;  // 12.0, 12.1

  __device__ static uint32_t bytes(uint32_t word, int s) { return word >> s & 0x01010101u; }

  template <int kRowTiles, int kOutputTiles, class Rows, class Weights>
  __device__ static void multiply(int (&c)[kRowTiles][kOutputTiles][4], const Rows& rows, const Weights& weights) {
    Fragment rows_words[kRowTiles][2], w[kOutputTiles];
    load_rows(rows_words, rows);
#pragma unroll
    for (int j = 0; j < kOutputTiles; ++j) w[j] = weights(j);
#pragma unroll
    for (int chunk = 0; chunk < 4; ++chunk)
#pragma unroll
      for (int s = 0; s < 8; s += 2) {
        uint32_t a[kRowTiles][4];
#pragma unroll
        for (int i = 0; i < kRowTiles; ++i)
#pragma unroll
          for (int part = 0; part < 4; ++part)
            a[i][part] = bytes(rows_words[i][chunk / 2].words[chunk % 2 * 2 + part % 2], s + part / 2);
#pragma unroll
        for (int j = 0; j < kOutputTiles; ++j) {
          const uint32_t b[2] = {bytes(w[j].words[chunk], s), bytes(w[j].words[chunk], s + 1)};
#pragma unroll
          for (int i = 0; i < kRowTiles; ++i) mma_bytes_16x8x32(c[i][j], a[i], b);
        }
      }
  }
};

// Four warps together, from shared memory, 64 rows times 256 outputs: each warp has 16 rows and all outputs. Weights
// come to shared memory in bulk.
struct WarpGroupMma {
  static constexpr bool kAnd = true, kWarpGroup = true;
  static constexpr int kBlocks = 1;
  static constexpr int kSharedBytes = 227 * 1024;  // 9.0

  // Leaves the products of a block of 64 rows and 256 outputs under way, and those that came before done.
  __device__ static void start(int (&c)[32][4], const uint32_t* rows, const uint32_t* weights) {
    begin_products();
    for (int half = 0; half < 2; ++half)
      multiply_warp_group(c, describe_tile(rows + half * 8), describe_tile(weights + half * 8));
    commit_products();
    wait_for_products<1>();
  }
};

// The same in clusters of two blocks, each of which copies half of the weights to both.
struct WarpGroupPairMma : WarpGroupMma {
  static constexpr int kBlocks = 2;
};

}  // namespace stompp::cuda
