// Sums of floats with signs of bits: sum over k of x[k] * w[n][k], w in {-1, +1}.
//
// A row of x is prepared once and then read with every panel of weights. What is prepared is the kernel's own choice:
// the floats themselves, or for each b neighbouring inputs the 2^b sums that signs can make of them. Then b bits of a
// weight select a sum, in a table that a vector register holds, and one addition does for b products:
//
//     b inputs, 16 outputs:  acc = acc + table[bits]    a permutation and an addition, for 16 * b products
//
// Every sum is one that additions of floats in another order give; infinities and NaN reach the outputs of their own
// row only.
#pragma once

#include <cstdint>

namespace stompp {

constexpr int64_t kMaxSumRows = 16;

// Some rows are multiplied with consecutive panels of one group. Small groups have kernels of their own: channel_sum.h.
struct SignedSumBlock {
  const float* const* rows;  // prepared inputs, [tap_count][row_count]
  int64_t row_count;         // 1 .. SignedSumKernel::rows
  const int32_t* taps;       // which taps of the weight these are, [tap_count]
  int64_t tap_count;
  int64_t inputs;          // of a tap
  const uint32_t* panels;  // see LayoutId::kTapWords
  int64_t panel_taps;      // taps of a panel
  int64_t panel_count;     // at least 1
  float* sums;             // out, [row_count][stride], panel_count * kPanelOutputs of each row
  int64_t stride;
};

struct SignedSumKernel {
  int64_t rows;         // most rows of a block
  int64_t word_floats;  // prepared floats of a word of 32 inputs
  // Turns `inputs` inputs of a tap into round_up(inputs, 32) / 32 * word_floats prepared ones, 64-byte aligned. All of
  // them are 0 where the inputs are.
  void (*prepare)(const float* x, int64_t inputs, float* prepared);
  void (*add_up)(const SignedSumBlock& block);
};

}  // namespace stompp
