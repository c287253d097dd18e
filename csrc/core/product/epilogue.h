// What becomes of an int32 accumulator. One of three kinds:
//
//   kInt32      out[m][n] = acc
//   kAffine     out[m][n] = scale[n] * acc + bias[n] (+ residual[m][n]), in fp32, stored as out_type. Each operation is
//               rounded on its own, as torch's eager `y * scale + bias`, unless `fused`: then product and sum are
//               rounded once, as torch's BatchNorm is where it has an FMA. A residual with a scale and a bias of its
//               own is residual_scale[n] * residual[m][n] + residual_bias[n], rounded in the same way. With `rprelu`,
//               rows before, slope and after of [3][N], the result goes through ReActNet's RPReLU:
//               t = result + before[n], then (t > 0 ? t : t * slope[n]) + after[n]. With `sign_words`, bit n of row m
//               there says whether the result is below zero, or with `limits`, rows low and high of [2][N], whether it
//               is below low[n] or above high[n]; out may then be null.
//   kThreshold  bit n of out[m] = (acc < threshold[r][n]) ^ flip[n], r = bit n of residual_words[m], or 0 without
//
// BatchNorm followed by sign is the third: y(acc) is monotone, so `y < 0` is one comparison, flipped where gamma < 0;
// gamma = 0 makes it constant (a threshold of INT32_MIN or INT32_MAX). A residual that is itself +-1 picks one of two
// thresholds by its bit. A residual row lies as an output row does.
#pragma once

#include <cstdint>

#include "core/base/float_types.h"

namespace stompp {

struct ProductKernels;

struct Epilogue {
  enum class Kind { kInt32, kAffine, kThreshold };

  Kind kind = Kind::kInt32;
  int64_t N = 0;        // outputs of a row
  void* out = nullptr;  // [M][N] int32 or out_type, or [M][words_for(N)] words

  const float* scale = nullptr;  // [N]
  const float* bias = nullptr;   // [N]
  const void* residual = nullptr;
  const float* residual_scale = nullptr;  // [N], both or neither
  const float* residual_bias = nullptr;
  FloatType out_type = FloatType::kFloat32;
  FloatType residual_type = FloatType::kFloat32;
  bool fused = false;
  const float* rprelu = nullptr;   // [3][N]
  uint32_t* sign_words = nullptr;  // [M][words_for(N)]; out_type is kFloat32 with it
  const float* limits = nullptr;   // [2][N], with sign_words

  const int32_t* thresholds = nullptr;   // [1][N], or [2][N] with residual_words
  const uint32_t* flip_words = nullptr;  // [words_for(N)]
  const uint32_t* residual_words = nullptr;

  int64_t threshold_sets() const { return residual_words == nullptr ? 1 : 2; }
};

// Accumulators of outputs [n, n + count) of some rows.
struct Dots {
  int64_t first_row, rows, n, count;
  int32_t* values;  // [rows][stride]; of every row, round_up(count, kPanelOutputs) may be read
  int64_t stride;
};

// Ranges that share a word of output bits must not be finished by two threads at once, and clear_bits comes before
// them.
void finish(const Epilogue& epilogue, const ProductKernels& kernels, const Dots& dots);

// The same for kThreshold where the accumulators were compared already; `bits` as in BitsOut.
void finish_bits(const Epilogue& epilogue, const Dots& dots, const uint32_t* bits);

// Clears the output words of rows [first_row, first_row + rows), where the epilogue writes any.
void clear_bits(const Epilogue& epilogue, int64_t first_row, int64_t rows);

}  // namespace stompp
