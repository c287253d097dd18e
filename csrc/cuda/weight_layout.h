// Packed weights on a GPU.
//
//   tap sums: int32 [(kernel_h + 1) * (kernel_w + 1)][outputs_padded] | panels
//
// A panel holds kPanel consecutive outputs of one group, [k_blocks][kPanel / 8][8 outputs][64 bytes]: a block is 512
// bits of K, and the 8 x 64 bytes of 8 outputs are what a warp loads at once. The outputs of a word stand in the order
// of `place_in_panel`: mma leaves products with rows 2 t and 2 t + 1 of each eight in thread t of a quad, and these are
// then outputs 4 t to 4 t + 3 of each half of the word, which the thread writes side by side. A row of K is the words
// of its taps side by side, zeros up to whole blocks. The 16-byte chunks of a row stand in the order of `swizzle`, in
// which eight rows of a chunk meet all banks of shared memory, and which wgmma knows as its 64-byte swizzle. Outputs
// past a group's end are zeros.
//
// Tap sum (y, x) of an output is the sum of its weights over the taps before row y and column x, C - 2 pop(w) each:
// four of them give the sum over any rectangle of taps, the last one alone the sum over all.
//
// Small groups (core/product/packed_weight.h) have words of channels instead, [words_for(channels)][g][taps] with g
// channels in a group: bit i of turn r is the weight with which channel i of the output reads channel (i + r) % g of
// its group.
#pragma once

#include <cstdint>

#include "core/base/bits.h"
#include "core/product/packed_weight.h"

#ifdef __CUDACC__
#define STOMPP_HOST_DEVICE __host__ __device__
#else
#define STOMPP_HOST_DEVICE
#endif

namespace stompp::cuda {

constexpr int kPanel = 64;       // outputs of a panel
constexpr int kBlockWords = 16;  // words of K in a block
constexpr int kChunkWords = 4;   // of 16 bytes
constexpr int kPanelBlockWords = kPanel * kBlockWords;

// Where chunk 0 to 3 of a row stands among the row's four.
STOMPP_HOST_DEVICE constexpr int swizzle(int row, int chunk) { return chunk ^ (row >> 1 & 3); }

// Where an output stands among a panel's: bits 3 and 2 of its number move behind bit 1.
STOMPP_HOST_DEVICE constexpr int place_in_panel(int output) {
  return (output & ~14) | (output >> 1 & 6) | (output << 2 & 8);
}

struct WeightLayout {
  int64_t groups, panels_per_group, k_blocks;
  int64_t sums;               // of each output
  int64_t small_group_words;  // 0 where the groups are not small

  static constexpr WeightLayout of(const WeightShape& shape) {
    return {shape.groups, ceil_div(shape.group_outputs(), kPanel),
            ceil_div(shape.taps() * words_for(shape.in_channels), kBlockWords),
            (shape.kernel_h + 1) * (shape.kernel_w + 1),
            shape.small_groups() ? words_for(shape.out_channels) * shape.in_channels * shape.taps() : 0};
  }
  constexpr int64_t outputs_padded() const { return groups * panels_per_group * kPanel; }
  constexpr int64_t sums_words() const { return sums * outputs_padded(); }  // whole 16-byte chunks
  constexpr int64_t panel_words() const { return k_blocks * kPanelBlockWords; }
  constexpr int64_t words() const {
    return small_group_words > 0 ? small_group_words : sums_words() + groups * panels_per_group * panel_words();
  }
  constexpr int64_t bytes() const { return words() * kWordBytes; }
};

// The word of K of an output, of a panel's.
STOMPP_HOST_DEVICE constexpr int64_t word_in_panel(int output, int64_t word) {
  const int64_t block = word / kBlockWords;
  const int chunk = static_cast<int>(word % kBlockWords) / kChunkWords;
  const int row = place_in_panel(output);
  return block * kPanelBlockWords + row * kBlockWords + swizzle(row, chunk) * kChunkWords + word % kChunkWords;
}

}  // namespace stompp::cuda
