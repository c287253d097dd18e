// What the products of bits need from an instruction set.
#pragma once

#include <cstdint>

#include "core/base/parallel.h"
#include "core/base/status.h"
#include "core/product/bit_planes.h"
#include "core/product/epilogue.h"
#include "core/product/packed_weight.h"
#include "core/product/row_source.h"
#include "core/product/rows.h"

namespace stompp {

constexpr int64_t kFewRows = 8;
constexpr int64_t kBlockPanels = 4;  // panels that share one pass over the rows of a block

// One block of rows against consecutive panels of one group.
struct ProductBlock {
  RowBlock rows;
  void* scratch;          // as the kernel's prepare_rows left it for these rows
  const uint8_t* panels;  // [panel_count][k_bytes * kPanelOutputs]
  int64_t panel_count;    // 1 .. kBlockPanels
};

// Out: dots = starts - 2 * pop(row ^ weight), [row_count][panel_count * kPanelOutputs].
struct DotsOut {
  const int32_t* const* starts;  // of each row, [panel_count * kPanelOutputs]
  int32_t* dots;
  int64_t stride;  // from one row of dots to the next
};

// Out: (starts - 2 * pop) * scale + bias (+ residual), perhaps an RPReLU, rounded as in Epilogue. One of `out` and
// `words` may be null.
struct AffineOut {
  const int32_t* const* starts;  // as in DotsOut
  bool fused;
  const float* scale;  // [panel_count * kPanelOutputs]
  const float* bias;
  const float* residual;        // as `out`, or null
  const float* residual_scale;  // as `scale`, both or neither
  const float* residual_bias;
  struct {
    const float *before, *slope, *after;  // as `scale`, all or none
  } rprelu;
  struct {
    const float *low, *high;  // as `scale`, both or neither
  } limits;
  float* out;
  int64_t stride;   // from one row of outputs, or of residuals, to the next
  uint32_t* words;  // [row][panel_count], bit i: output i is below zero, or outside its limits
  int64_t word_stride;
};

// Out: bit i of bits[set][row][panel] = pop(row ^ weight i) > limit i, for each of one or two sets of limits.
struct BitsOut {
  const int16_t* const* limits;  // of each row, [set_count][kBlockPanels * kPanelOutputs]
  int64_t set_count;             // 1 or 2
  uint32_t* bits;                // [set_count][kBlockRows][kBlockPanels]
};
constexpr int32_t kMaxLimitK = 32767;  // counts up to K can be compared as 16-bit integers

// One way to compute a product of blocks of rows.
struct ProductKernel {
  // Bytes of 64-byte aligned scratch memory that a product over k_bytes needs, and its part that depends on the rows
  // only: written once for a block of rows, then read with every panel. The products may write to the rest.
  int64_t (*scratch_bytes)(int64_t k_bytes);
  void (*prepare_rows)(const RowBlock& rows, void* scratch);
  void (*multiply)(const ProductBlock& block, const DotsOut& out);
  // Null where the epilogue reads dot products instead. K is at most kMaxLimitK.
  void (*compare)(const ProductBlock& block, const BitsOut& out);
  void (*scale)(const ProductBlock& block, const AffineOut& out);
  // It leaves out runs that are padding where a run's bytes are a multiple of this; 0 where it never does.
  int64_t skipped_run_bytes;
};

struct ProductKernels;

// The least product that is faster on tiles than by a product kernel, as measured. A convolution of whole 64-bit words
// of channels needs fewer outputs: its pixels are expanded once, not once for each tap. Sums that become bits can be
// shorter: they are compared beside the tiles' products, where a product kernel compares them behind its own.
struct TileBounds {
  int64_t rows, K, K_to_bits, group_outputs, convolution_outputs;

  constexpr bool allow(const WeightShape& weight, int64_t row_count, bool to_bits) const {
    const bool convolution = weight.taps() > 1 && weight.in_channels % 64 == 0;
    return row_count >= rows && weight.K() >= (to_bits ? K_to_bits : K) &&
           weight.group_outputs() >= (convolution ? convolution_outputs : group_outputs);
  }
};

// A way to compute whole products that cuts them itself, for instructions that multiply tiles. It reads the same
// weights as the product kernels beside it.
struct TileProduct {
  TileBounds bounds;
  Status (*multiply)(const ProductKernels& kernels, const AnyRows& source, int64_t M, const PackedWeight& weight,
                     const Epilogue& epilogue, const Parallel& pool);
};

struct ProductKernels {
  WeightLayout layout;  // the panel order that all of them read

  // The first is for any block of rows, the others for up to kFewRows of them and for one. The last two may be all
  // null: choose.h says which runs.
  ProductKernel blocks, few_rows, one_row;

  // For many rows, or all null.
  TileProduct tiles;

  // For each of up to kBlockRows rows of accumulators, acc + r * stride: bit i of bits[r] = acc[i] < thresholds[i], for
  // i < 32.
  void (*less_than)(const int32_t* acc, int64_t stride, int64_t rows, const int32_t* thresholds, uint32_t* bits);

  // The kAffine epilogue.
  void (*affine)(const Epilogue& epilogue, const Dots& dots);
};

// Small groups count in bit planes; see bit_planes.h.
struct PlaneKernels {
  void (*count_taps)(const TapBlock& block);
  void (*compare_planes)(const PlaneComparison& comparison);
  // Turns counts into start - 2 * count, [words][32].
  void (*planes_to_dots)(const uint32_t* planes, int plane_count, int64_t words, int32_t start, int32_t* dots);
};

// The kernels of the instruction set that runs, or null where none can.
const ProductKernels* active_product_kernels();
const PlaneKernels* active_plane_kernels();

}  // namespace stompp
