// Float weights transformed for winograd.h, with the limits that their sums are compared with, and how far such a sum
// may be from conv2d_float's chain of fused multiply-adds.
#pragma once

#include <cstdint>
#include <vector>

#include "core/base/aligned.h"
#include "core/base/parallel.h"
#include "core/float_conv/winograd.h"
#include "core/product/bconv2d.h"
#include "core/product/packed_weight.h"
#include "core/signs/pack.h"

namespace stompp {
namespace winograd {

// Says whether less is to be computed this way.
bool pays(const Conv2dShape& shape, const WeightShape& weight);

class Weight {
 public:
  // weights: [ceil(O / 32)][kernel_h][kernel_w][channels][32]; limits: of as many outputs. The shapes are ones that it
  // pays for.
  Weight(const float* weights, const Conv2dShape& shape, const WeightShape& weight, const Limits& limits,
         const Parallel& pool);

  // False without memory, for weights that are not finite, and for outputs with limits on both sides.
  bool usable() const { return usable_; }

  int64_t line_count() const { return line_count_; }  // lines of input from one that a tap reads to the next tap's
  int64_t input_lines() const { return (kRows - 1) * line_count_ + shape_.kernel_h; }  // that kRows rows read

  const float* panel(int64_t panel) const { return transformed_.get() + panel * kPoints * K_ * kPanelOutputs; }
  const float* starts(int64_t panel) const { return &starts_[static_cast<size_t>(panel * kPanelOutputs)]; }

  // Writes up to which magnitude the signs of a panel's sums are in doubt, [kRows][32].
  void doubts(int64_t panel, const Largest& largest, float* out) const;

 private:
  // The factors in a panel's bounds: of the largest transformed floats, of the largest input, and of nothing.
  struct Bounds {
    float of_lines[kPoints][kPanelOutputs] = {};
    float of_inputs_by_lines[kPoints][kPanelOutputs] = {};  // what transformed floats are off by
    float of_inputs[kPanelOutputs] = {};
    float of_start[kPanelOutputs] = {};
  };

  bool set_limits(const Limits& limits);
  void transform(int64_t panel, const float* weights);
  bool set_bounds(int64_t panel, const float* weights);

  const WeightShape shape_;
  const int64_t line_count_, K_, panels_;
  bool usable_;
  AlignedFloats transformed_;
  std::vector<float> starts_, signs_;  // [panels * 32]; signs: what weights are multiplied with, -1, 0 or 1
  std::vector<Bounds> bounds_;         // of panels
};

}  // namespace winograd
}  // namespace stompp
