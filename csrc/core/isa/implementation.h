// What an instruction set provides. Each one is a folder that defines one Implementation; everything else in the core
// is written once on top of these primitives. To add one: write the folder, list it in dispatch.cpp.
#pragma once

#include <cstdint>

#include "core/base/float_types.h"
#include "core/base/parallel.h"
#include "core/base/status.h"
#include "core/binary_weight/signed_sum.h"
#include "core/float_conv/float_tile.h"
#include "core/float_conv/winograd.h"
#include "core/masks/progressive.h"
#include "core/product/bit_planes.h"
#include "core/product/epilogue.h"
#include "core/product/packed_weight.h"
#include "core/product/row_source.h"
#include "core/product/rows.h"
#include "core/signs/pack.h"

namespace stompp {

struct Implementation;

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

// Out: (starts - 2 * pop) * scale + bias (+ residual), rounded as in Epilogue. Of `out` and `words` one may be null.
struct AffineOut {
  const int32_t* const* starts;  // as in DotsOut
  bool fused;
  const float* scale;  // [panel_count * kPanelOutputs]
  const float* bias;
  const float* residual;        // as `out`, or null
  const float* residual_scale;  // as `scale`, both or neither
  const float* residual_bias;
  float* out;
  int64_t stride;   // from one row of outputs, or of residuals, to the next
  uint32_t* words;  // [row][panel_count], bit i: output i is below zero
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
};

// A reason for Implementation::missing.
constexpr const char* kNoInstructions = "this processor lacks its instructions";

// The least product that is faster on tiles than by a product kernel, as measured.
struct TileBounds {
  int64_t rows, group_outputs, K;

  constexpr bool allow(const WeightShape& weight, int64_t row_count) const {
    return row_count >= rows && weight.group_outputs() >= group_outputs && weight.K() >= K;
  }
};

// A way to compute whole products that cuts them itself, for instructions that multiply tiles. It reads the same
// weights as the product kernels beside it.
struct TileProduct {
  TileBounds bounds;
  Status (*multiply)(const Implementation& implementation, const AnyRows& source, int64_t M, const PackedWeight& weight,
                     const Epilogue& epilogue, const Parallel& pool);
};

struct Implementation {
  const char* name;
  const char* description;
  // Null where it can run; else a reason, what the processor lacks or the operating system refuses.
  const char* (*missing)();
  WeightLayout layout;  // the panel order that its kernels read

  // For any block of rows, for up to kFewRows of them, and for one. The last two may be all null: choose.h says which
  // runs.
  ProductKernel blocks, few_rows, one_row;

  // For many rows, or all null.
  TileProduct tiles;

  // See bit_planes.h. The last turns counts into start - 2 * count, [words][32].
  void (*count_taps)(const TapBlock& block);
  void (*compare_planes)(const PlaneComparison& comparison);
  void (*planes_to_dots)(const uint32_t* planes, int plane_count, int64_t words, int32_t start, int32_t* dots);

  // The sign bits of K consecutive elements, as words_for(K) words with a zero tail.
  void (*pack_row)(const void* x, FloatType type, int64_t K, uint32_t* words);

  // The same for limits; see pack.h.
  void (*pack_outside)(const void* x, FloatType type, const Limits& limits, int64_t K, uint32_t* words);

  // Both for pixels [begin, end) of an image whose channels are planes; see pack.h.
  void (*pack_planes)(const Planes& planes, int64_t begin, int64_t end);

  // The inverse: +1 or -1 for each of K bits.
  void (*unpack_row)(const uint32_t* words, FloatType type, int64_t K, void* out);

  // For each of up to kBlockRows rows of accumulators, acc + r * stride: bit i of bits[r] = acc[i] < thresholds[i], for
  // i < 32.
  void (*less_than)(const int32_t* acc, int64_t stride, int64_t rows, const int32_t* thresholds, uint32_t* bits);

  // The kAffine epilogue.
  void (*affine)(const Epilogue& epilogue, const Dots& dots);

  // `count` elements of one row of a mask; see progressive.h.
  void (*progressive_forward)(const ProgressiveRow& row);
  void (*progressive_backward)(const ProgressiveRow& row);
  void (*gate_backward)(const GateRow& row);

  // Words [begin, end) of a mask of n entries; see refresh_mask.h.
  void (*refresh_words)(const struct RefreshMask& refresh, uint32_t* words, int64_t begin, int64_t end);

  // Float activations with binary weights.
  BinaryWeightKernels binary_weight;

  // Floats with float weights.
  FloatTileKernel float_tiles;
  winograd::Kernel winograd;
};

}  // namespace stompp
