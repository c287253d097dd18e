// Which kernel a product runs on: a function of its shape and of what the instruction set has. The bounds were measured
// by benchmarks/kernels.py.
#pragma once

#include <cstdint>

#include "core/product/kernels.h"
#include "core/product/packed_weight.h"

namespace stompp {

enum class KernelChoice { kBlocks, kFewRows, kOneRow, kSmallGroups, kTiles };

struct KernelFeatures {
  bool few_rows, one_row, tiles;
  TileBounds tile_bounds;
};

constexpr KernelChoice choose_kernel(const WeightShape& weight, int64_t rows, bool to_bits, const KernelFeatures& has) {
  if (weight.small_groups()) return KernelChoice::kSmallGroups;
  if (has.tiles && has.tile_bounds.allow(weight, rows, to_bits)) return KernelChoice::kTiles;
  if (rows == 1 && has.one_row) return KernelChoice::kOneRow;
  // Its counts have 16 bits.
  if (rows <= kFewRows && weight.K() <= kMaxLimitK && has.few_rows) return KernelChoice::kFewRows;
  return KernelChoice::kBlocks;
}

// to_bits: the epilogue is kThreshold.
inline KernelChoice choose_kernel(const ProductKernels& kernels, const WeightShape& weight, int64_t rows,
                                  bool to_bits) {
  const KernelFeatures has = {kernels.few_rows.multiply != nullptr, kernels.one_row.multiply != nullptr,
                              kernels.tiles.multiply != nullptr, kernels.tiles.bounds};
  return choose_kernel(weight, rows, to_bits, has);
}

inline const ProductKernel& product_kernel(const ProductKernels& kernels, KernelChoice choice) {
  switch (choice) {
    case KernelChoice::kOneRow:
      return kernels.one_row;
    case KernelChoice::kFewRows:
      return kernels.few_rows;
    default:
      return kernels.blocks;
  }
}

}  // namespace stompp
