// Rows of a convolution by Winograd's minimal filtering (Winograd 1980; Lavin & Gray, CVPR 2016), F(7, 4) along
// columns: 10 products of transformed lines give 7 rows of sums, where the sums themselves take 28.
//
//   sums = A^T [(G w) * (B^T x)]
//
// x: kPoints lines of input, stride_h apart, w: kTaps weights of a column, * over the points, each a point at which the
// polynomials that stand for them are evaluated. Lines between those lines are more inputs of the same sums.
//
// Floats rounded this way are not those of conv2d_float's chain. But they decide on which side of a limit the chain's
// sum is, unless they lie within a bound of it (winograd_weight.h), and the kernel says where they do.
#pragma once

#include <cstdint>

#include "core/product/packed_weight.h"

namespace stompp {
namespace winograd {

constexpr int kRows = 7;  // of output; it divides the heights of networks for images of 224 pixels
constexpr int kTaps = 4;
constexpr int kPoints = kRows + kTaps - 1;
constexpr int kPixels = 24;      // at most, beside each other
constexpr int kLineFloats = 16;  // lines are multiples of it

// All points but the last, which is infinity. 0 comes first, then pairs of opposite signs, 1 and -1 before others.
constexpr int kPairs = 3;
constexpr double kFinitePoints[kPoints - 1] = {0, 1, -1, 2, -2, 0.5, -0.5, 4, -0.25};
constexpr int kOne = 1;  // which of them adds to every row once

struct Matrices {
  double outputs[kRows][kPoints];  // A^T
  double lines[kPoints][kPoints];  // B^T
  double weights[kPoints][kTaps];  // G
};

// The matrices of Toom and Cook: values of the weights' polynomial at the points, divided by the Lagrange denominators;
// coefficients of the numerators; powers of the points.
constexpr Matrices make_matrices() {
  Matrices m = {};
  for (int p = 0; p < kPoints; ++p) {
    const bool finite = p < kPoints - 1;
    double product[kPoints + 1] = {1}, denominator = 1;  // of x - point, over all other points
    int degree = 0;
    for (int q = 0; q < kPoints - 1; ++q) {
      if (q == p) continue;
      ++degree;
      for (int i = degree; i >= 0; --i) product[i] = (i > 0 ? product[i - 1] : 0) - kFinitePoints[q] * product[i];
      if (finite) denominator *= kFinitePoints[p] - kFinitePoints[q];
    }
    for (int i = 0; i < kPoints; ++i) m.lines[p][i] = product[i];
    double power = 1;
    for (int i = 0; i < kPoints; ++i) {
      if (i < kRows) m.outputs[i][p] = finite ? power : i == kRows - 1;
      if (i < kTaps) m.weights[p][i] = finite ? power / denominator : i == kTaps - 1;
      if (finite) power *= kFinitePoints[p];
    }
  }
  return m;
}
constexpr Matrices kMatrices = make_matrices();

// The kernels multiply by A and B as floats, and use the points' order.
constexpr bool are_exact() {
  for (int i = 0; i < kPoints; ++i)
    for (int p = 0; p < kPoints; ++p) {
      if (i < kRows && static_cast<float>(kMatrices.outputs[i][p]) != kMatrices.outputs[i][p]) return false;
      if (static_cast<float>(kMatrices.lines[p][i]) != kMatrices.lines[p][i]) return false;
    }
  return true;
}
constexpr bool are_in_order() {
  for (int i = 0; i < kPairs; ++i)
    if (kFinitePoints[1 + 2 * i] != -kFinitePoints[2 + 2 * i]) return false;
  return kFinitePoints[0] == 0 && kFinitePoints[kOne] == 1;
}
static_assert(are_exact() && are_in_order(), "the points are not what the kernels expect");

// What the sums of some pixels beside each other and a panel of 32 outputs are computed from.
struct Tile {
  const float* lines;  // transformed, [kPoints][line_count] of `line_stride` floats, from what the first pixel reads on
  int64_t line_count, line_stride;
  int64_t run_floats;    // that a pixel reads of a line
  int64_t step;          // floats from what a pixel reads to what the next one does
  int64_t pixels;        // 1 .. kPixels
  const float* weights;  // transformed, [kPoints][line_count * run_floats][32]
  const float* starts;   // [32], what is added to every sum
  const float* doubts;   // [kRows][32]: the sign of sums that are not larger is in doubt
};

// Bit n of a pixel's words says that its sum is negative, or that it may have either sign. NaN is in doubt.
struct Bits {
  uint32_t negative[kRows][kPixels];
  uint32_t doubtful[kRows][kPixels];
};

// The largest magnitudes, NaN left out.
struct Largest {
  float input = 0, lines[kPoints] = {};
};

struct Kernel {
  // Multiplies B^T with kPoints lines of `floats` floats, a multiple of kLineFloats, and writes lines `out_stride`
  // apart.
  void (*transform)(const float* const* lines, int64_t floats, float* out, int64_t out_stride, Largest& largest);
  void (*compare)(const Tile& tile, Bits& bits);
};

}  // namespace winograd
}  // namespace stompp
