#include "core/float_conv/winograd_weight.h"

#include <atomic>
#include <cmath>
#include <limits>

namespace stompp {
namespace winograd {
namespace {

// All weights are read again for each kRows rows of output.
constexpr int64_t kNearBytes = 1024 * 1024;
constexpr int64_t kFewestPixels = 1024;  // that are worth transforming the weights for
constexpr int64_t kPointCost = 8;        // of a point besides its products, in products

// Bounds above this say nothing. Below it all sums and what they are added up from are less than kHuge, as bounds are
// at least 2^-24 of either.
constexpr float kMostDoubt = 0x1p32f, kHuge = 0x1p60f;
// The start of sums that have no limit.
constexpr float kSure = 0x1p40f;
// This is more than what all results that are too small for a float, and count as zero, can add up to: 2^-126 each,
// less than 2^12 of them, times at most 2^12 and 2^9 of A and B.
constexpr float kTiny = 0x1p-80f;

int64_t lines_between(const Conv2dShape& shape) { return shape.stride_h; }

int64_t point_K(const Conv2dShape& shape, const WeightShape& weight) {
  return lines_between(shape) * weight.kernel_w * weight.in_channels;
}

float* panel_values(std::vector<float>& values, int64_t panel) {
  return &values[static_cast<size_t>(panel * kPanelOutputs)];
}

// Adds, for `count` values of each output, their magnitudes to `sums`, and those of all sums on the way there to the
// other.
void add_magnitudes(const float* values, int64_t count, float* sums, float* sums_on_the_way) {
  for (int64_t i = 0; i < count; ++i, values += kPanelOutputs)
    for (int64_t n = 0; n < kPanelOutputs; ++n) {
      const float magnitude = std::fabs(values[n]);
      sums[n] += magnitude;
      sums_on_the_way[n] += static_cast<float>(count - i) * magnitude;
    }
}

// Returns the magnitudes of all sums on the way, for the coefficients of a point's line.
double line_magnitudes(int point) {
  double sum = 0, all = 0;
  for (const double b : kMatrices.lines[point]) {
    sum += std::fabs(b);
    if (b != 0) all += sum;
  }
  return all;
}

}  // namespace

bool pays(const Conv2dShape& s, const WeightShape& w) {
  const int64_t taps = ceil_div(w.kernel_h, lines_between(s)), K = point_K(s, w), height = s.out_height(w);
  if (taps < kTaps - 1 || taps > kTaps || s.dilation_h != 1 || s.dilation_w != 1 || w.groups != 1) return false;
  const int64_t panels = ceil_div(w.out_channels, kPanelOutputs);
  if (panels * kPoints * K * kPanelOutputs * static_cast<int64_t>(sizeof(float)) > kNearBytes) return false;
  // The last rows of output may be fewer than those that are computed.
  return s.batch * height * s.out_width(w) >= kFewestPixels &&
         5 * kPoints * ceil_div(height, kRows) * (K + kPointCost) < 4 * height * w.K();
}

Weight::Weight(const float* weights, const Conv2dShape& shape, const WeightShape& weight, const Limits& limits,
               const Parallel& pool)
    : shape_(weight),
      line_count_(lines_between(shape)),
      K_(point_K(shape, weight)),
      panels_(ceil_div(weight.out_channels, kPanelOutputs)),
      usable_(false),
      starts_(static_cast<size_t>(panels_ * kPanelOutputs)),
      signs_(starts_.size()),
      bounds_(static_cast<size_t>(panels_)) {
  transformed_ = aligned_floats(panels_ * kPoints * K_ * kPanelOutputs);
  if (transformed_ == nullptr || !set_limits(limits)) return;
  std::atomic<bool> bounded{true};
  parallel_for(pool, panels_, 1, [&](int64_t begin, int64_t end) {
    for (int64_t panel = begin; panel < end; ++panel) {
      transform(panel, weights);
      if (!set_bounds(panel, weights)) bounded = false;
    }
  });
  usable_ = bounded;
}

// An output's bit says that sum < low or sum > high. With a start of -low, or of high and all weights negated, it is
// the sum's sign. Where nothing can be outside of the limits, or nothing inside, it is that of a start alone.
bool Weight::set_limits(const Limits& limits) {
  for (size_t n = 0; n < starts_.size(); ++n) {
    const float low = limits.low[n], high = limits.high[n];
    const bool has_low = low > -kHuge, has_high = high < kHuge;  // not if they are not a number
    const bool always = low >= kHuge || high <= -kHuge;
    if (has_low && has_high && !always) return false;
    const bool compared = (has_low || has_high) && !always;
    signs_[n] = !compared ? 0.0f : has_low ? 1.0f : -1.0f;
    starts_[n] = !compared ? (always ? -kSure : kSure) : has_low ? -low : high;
  }
  return true;
}

// Computes G w. Tap t of a line is the filter's row t * line_count + line, if it has one.
void Weight::transform(int64_t panel, const float* weights) {
  const int64_t row_K = K_ / line_count_;
  const float* sign = panel_values(signs_, panel);
  float* out = transformed_.get() + panel * kPoints * K_ * kPanelOutputs;
  for (int point = 0; point < kPoints; ++point)
    for (int64_t line = 0; line < line_count_; ++line)
      for (int64_t k = 0; k < row_K; ++k, out += kPanelOutputs) {
        float sums[kPanelOutputs] = {};
        for (int64_t row = line; row < shape_.kernel_h; row += line_count_) {
          const float g = static_cast<float>(kMatrices.weights[point][row / line_count_]);
          const float* w = weights + ((panel * shape_.kernel_h + row) * row_K + k) * kPanelOutputs;
          for (int64_t n = 0; n < kPanelOutputs; ++n) sums[n] += g * w[n];
        }
        for (int64_t n = 0; n < kPanelOutputs; ++n) out[n] = sums[n] * sign[n];
      }
}

// A result of an addition, a multiplication or both is off by at most u = 2^-24 of its magnitude. To first order the
// errors of n in a row are u times all sums on the way; for terms of the same kind that is n - i times the i-th term's
// magnitude, added up. Where inputs are at most x, and transformed lines at most v[p], for row i of the outputs:
//
//   lines        x sum_l (kPoints - l) |B[p][l]|, times s[p] = sum_k |U[p][k]|
//   weights      u for G, for the products, and for kTaps sums: v[p] (kTaps + 2) sum_k sum_t |G[p][t]| |w[t][k]|
//   products     v[p] sum_k (K - k) |U[p][k]|; where they begin with a start, K |start|
//   outputs      kPoints in a row: kPoints v[p] s[p], and kPoints |start|
//   all of which come with a factor |A[i][p]|
//   the chain    x sum_k (K' - k) |w[k]| over all its K'
bool Weight::set_bounds(int64_t panel, const float* weights) {
  constexpr float kUnit = 0x1p-24f * 1.02f;  // more than pays for higher orders, and for the sums below
  const int64_t row_K = K_ / line_count_;
  Bounds& bounds = bounds_[static_cast<size_t>(panel)];
  float sums[kPanelOutputs] = {};
  add_magnitudes(weights + panel * shape_.K() * kPanelOutputs, shape_.K(), sums, bounds.of_inputs);
  for (int p = 0; p < kPoints; ++p) {
    float s[kPanelOutputs] = {}, *of_lines = bounds.of_lines[p];
    add_magnitudes(this->panel(panel) + p * K_ * kPanelOutputs, K_, s, of_lines);
    for (int64_t n = 0; n < kPanelOutputs; ++n) {
      of_lines[n] = kUnit * (of_lines[n] + kPoints * s[n]);
      bounds.of_inputs_by_lines[p][n] = kUnit * static_cast<float>(line_magnitudes(p)) * s[n];
    }
  }
  for (int64_t row = 0; row < shape_.kernel_h; ++row) {
    float s[kPanelOutputs] = {}, unused[kPanelOutputs] = {};
    add_magnitudes(weights + (panel * shape_.kernel_h + row) * row_K * kPanelOutputs, row_K, s, unused);
    for (int p = 0; p < kPoints; ++p) {
      const float g = static_cast<float>(std::fabs(kMatrices.weights[p][row / line_count_]));
      for (int64_t n = 0; n < kPanelOutputs; ++n) bounds.of_lines[p][n] += kUnit * (kTaps + 2) * g * s[n];
    }
  }
  for (int64_t n = 0; n < kPanelOutputs; ++n) {
    const size_t output = static_cast<size_t>(panel * kPanelOutputs + n);
    const float start = signs_[output] == 0 ? 0.0f : std::fabs(starts_[output]);  // alone it is exact
    if (!(sums[n] < kHuge)) return false;                                         // nor where it is not a number
    bounds.of_inputs[n] = kUnit * bounds.of_inputs[n] + kTiny;
    bounds.of_start[n] = kUnit * static_cast<float>(K_ + kPoints) * start + kTiny * (1 + sums[n]);
  }
  return true;
}

void Weight::doubts(int64_t panel, const Largest& largest, float* out) const {
  const Bounds& bounds = bounds_[static_cast<size_t>(panel)];
  float of_point[kPoints][kPanelOutputs];
  for (int p = 0; p < kPoints; ++p)
    for (int64_t n = 0; n < kPanelOutputs; ++n)
      of_point[p][n] = largest.lines[p] * bounds.of_lines[p][n] + largest.input * bounds.of_inputs_by_lines[p][n];
  for (int i = 0; i < kRows; ++i, out += kPanelOutputs) {
    for (int64_t n = 0; n < kPanelOutputs; ++n) out[n] = bounds.of_start[n] + largest.input * bounds.of_inputs[n];
    for (int p = 0; p < kPoints; ++p) {
      const float scale = static_cast<float>(std::fabs(kMatrices.outputs[i][p]));
      for (int64_t n = 0; n < kPanelOutputs; ++n) out[n] += scale * of_point[p][n];
    }
    for (int64_t n = 0; n < kPanelOutputs; ++n)
      if (!(out[n] < kMostDoubt)) out[n] = std::numeric_limits<float>::infinity();
  }
}

}  // namespace winograd
}  // namespace stompp
