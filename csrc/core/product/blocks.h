// The product that bgemm and bconv2d share: blocks of output rows against a packed weight.
#pragma once

#include <cstdint>
#include <memory>

#include "core/base/parallel.h"
#include "core/base/scratch.h"
#include "core/base/status.h"
#include "core/base/workers.h"
#include "core/product/affine_out.h"
#include "core/product/choose.h"
#include "core/product/epilogue.h"
#include "core/product/kernels.h"
#include "core/product/packed_weight.h"
#include "core/product/row_source.h"
#include "core/product/taps.h"

namespace stompp {

// How the output is cut: blocks of rows, and units of up to kBlockPanels panels of one group. An item is some units of
// a row block; items of the same row block follow each other, so that a thread prepares its rows once.
struct BlockGrid {
  int64_t rows, row_blocks;        // rows of a block; the last may have fewer
  int64_t group_units, all_units;  // of one group, and of all groups
  int64_t item_units;              // divides all_units

  BlockGrid(int64_t M, const WeightShape& shape, int threads);
  int64_t items_per_block() const { return all_units / item_units; }
  int64_t items() const { return row_blocks * items_per_block(); }
};

namespace detail {

constexpr int64_t kUnitOutputs = kBlockPanels * kPanelOutputs;

// What the counts of rows with the same padded taps are taken from, for the outputs of one unit. A tap of zero padding
// is read as +1, so its tap sum is taken away from the start: it adds nothing.
struct RowStart {
  ValidTaps valid;
  int32_t starts[kUnitOutputs];     // see DotsOut
  int16_t limits[2][kUnitOutputs];  // see BitsOut
};
constexpr int64_t kRowStarts = 64;  // kept for the next rows
static_assert(kRowStarts > kBlockRows, "the rows of a block may all differ");

// Memory of one thread, aligned to cache lines.
class BlockMemory {
 public:
  BlockMemory(int64_t scratch_bytes, int64_t runs_per_row, int64_t copy_bytes);
  bool failed() const { return bytes_ == nullptr; }

  int32_t* dots;         // [kBlockRows][kUnitOutputs]
  const uint8_t** runs;  // [kBlockRows][runs_per_row]
  RowStart* starts;      // [kRowStarts]
  uint8_t* scratch;
  uint8_t* copies;

 private:
  Scratch<uint8_t> bytes_;
};

// Finds each row's start.
class RowStarts {
 public:
  // skips_lines: lines of taps that are padding are not multiplied, so that nothing of them is to be taken away.
  RowStarts(const PackedWeight& weight, const Epilogue& epilogue, bool with_limits, bool skips_lines, RowStart* entries)
      : weight_(weight), epilogue_(epilogue), with_limits_(with_limits), skips_lines_(skips_lines), entries_(entries) {}

  // For the unit's outputs [n, n + count) and the rows of some spans.
  void set(const TapSpan* spans, int64_t span_count, int64_t n, int64_t count);

  const int32_t* starts[kBlockRows];
  const int16_t* limits[kBlockRows];

 private:
  void fill(const ValidTaps& valid, RowStart* entry) const;

  const PackedWeight& weight_;
  const Epilogue& epilogue_;
  bool with_limits_, skips_lines_;
  RowStart* entries_;
  int64_t used_ = 0, n_ = 0, count_ = 0;
};

// What every thread reads.
template <class RowSource>
struct BlockProduct {
  const RowSource& source;
  const PackedWeight& weight;
  const Epilogue& epilogue;
  const ProductKernels& kernels;
  const ProductKernel& kernel;
  const BlockGrid grid;
  const int64_t M;
  const bool fits_limits = weight.shape.K() <= kMaxLimitK;
  const bool compares = epilogue.kind == Epilogue::Kind::kThreshold && kernel.compare != nullptr && fits_limits;
  const bool scales = kernel.scale != nullptr && is_affine_of_floats(epilogue) && fits_limits;
  const int64_t k_bytes = weight.layout.row_bytes(weight.shape);
  const int64_t line_runs = source.runs_per_row() / weight.shape.kernel_h;
  const bool skips_lines = weight.shape.kernel_h > 1 && source.runs_per_row() % weight.shape.kernel_h == 0 &&
                           kernel.skipped_run_bytes != 0 && source.run_bytes() % kernel.skipped_run_bytes == 0;

  int64_t tasks() const { return grid.items(); }
};

// One thread's memory and work.
template <class RowSource>
class BlockWorker {
 public:
  explicit BlockWorker(const BlockProduct<RowSource>& product)
      : p_(product),
        memory_(p_.kernel.scratch_bytes(p_.k_bytes), p_.source.runs_per_row(), p_.source.memory_bytes()),
        start_(p_.weight, p_.epilogue, p_.compares, p_.skips_lines, memory_.starts) {
    block_.scratch = memory_.scratch;
  }
  bool failed() const { return memory_.failed(); }
  void run(int64_t item);

 private:
  void find_counted_runs();
  void prepare_rows(int64_t row_block, int64_t rows, int64_t group);
  void finish_unit(Dots dots, int64_t whole);

  const BlockProduct<RowSource>& p_;
  const BlockMemory memory_;
  TapSpan spans_[kBlockRows];
  int64_t span_count_ = 0;
  RowStarts start_;
  uint32_t bits_[2 * kBlockRows * kBlockPanels];
  CountedRuns counted_[kBlockRows];
  ProductBlock block_ = {};
  int64_t ready_block_ = -1, ready_group_ = -1;
};

template <class RowSource>
void BlockWorker<RowSource>::run(int64_t item) {
  const BlockGrid& grid = p_.grid;
  const WeightShape& shape = p_.weight.shape;
  const int64_t panels = shape.panels_per_group(), group_outputs = shape.group_outputs();
  const int64_t row_block = item / grid.items_per_block(), first_row = row_block * grid.rows;
  const int64_t rows = p_.M - first_row < grid.rows ? p_.M - first_row : grid.rows;
  const int64_t first_unit = item % grid.items_per_block() * grid.item_units;
  if (grid.item_units > 1) clear_bits(p_.epilogue, first_row, rows);
  for (int64_t unit = first_unit; unit < first_unit + grid.item_units; ++unit) {
    const int64_t group = unit / grid.group_units, in_group = unit % grid.group_units;
    if (row_block != ready_block_ || group != ready_group_) prepare_rows(row_block, rows, group);
    const int64_t panel = in_group * panels / grid.group_units;
    block_.panel_count = (in_group + 1) * panels / grid.group_units - panel;
    block_.panels = p_.weight.panel(group, panel);

    const int64_t left = group_outputs - panel * kPanelOutputs, whole = block_.panel_count * kPanelOutputs;
    const int64_t n = group * group_outputs + panel * kPanelOutputs;
    finish_unit({first_row, rows, n, left < whole ? left : whole, memory_.dots, whole}, whole);
  }
}

template <class RowSource>
void BlockWorker<RowSource>::prepare_rows(int64_t row_block, int64_t rows, int64_t group) {
  const RowSource& source = p_.source;
  span_count_ = source.gather(row_block * p_.grid.rows, rows, group, memory_.runs, memory_.copies, spans_);
  if (p_.skips_lines) find_counted_runs();
  block_.rows = {
      memory_.runs, source.runs_per_row(), source.run_bytes(), rows, p_.k_bytes, p_.skips_lines ? counted_ : nullptr};
  p_.kernel.prepare_rows(block_.rows, block_.scratch);
  ready_block_ = row_block;
  ready_group_ = group;
}

template <class RowSource>
void BlockWorker<RowSource>::find_counted_runs() {
  CountedRuns* now = nullptr;
  for (int64_t span = 0; span < span_count_; ++span) {
    const ValidTaps& valid = spans_[span].valid;
    const int64_t begin = valid.h_begin * p_.line_runs, end = valid.h_end * p_.line_runs;
    if (now != nullptr && now->run_begin == begin && now->run_end == end)
      now->rows += spans_[span].rows;
    else
      *(now = now == nullptr ? counted_ : now + 1) = {spans_[span].rows, begin, end};
  }
}

// Multiplies the block, whose panels have `whole` outputs, and finishes those of `dots`.
template <class RowSource>
void BlockWorker<RowSource>::finish_unit(Dots dots, int64_t whole) {
  const Epilogue& epilogue = p_.epilogue;
  const bool all = dots.count == whole;
  start_.set(spans_, span_count_, dots.n, dots.count);
  if (p_.compares) {
    p_.kernel.compare(block_, {start_.limits, epilogue.threshold_sets(), bits_});
    finish_bits(epilogue, dots, bits_);
    return;
  }
  if (p_.scales && all && begins_words(epilogue, dots.n)) {
    p_.kernel.scale(block_, affine_out(epilogue, start_.starts, dots.first_row, dots.n));
    return;
  }
  const bool in_place = epilogue.kind == Epilogue::Kind::kInt32 && all;
  if (in_place) {
    dots.values = static_cast<int32_t*>(epilogue.out) + dots.first_row * epilogue.N + dots.n;
    dots.stride = epilogue.N;
  }
  p_.kernel.multiply(block_, {start_.starts, dots.values, dots.stride});
  if (!in_place) finish(epilogue, p_.kernels, dots);
}

}  // namespace detail

// Computes dot(row m, weight n) = K - 2*pop(row ^ weight) for m < M and all n, and finishes it with `epilogue`.
//
// RowSource says where a row's bits lie:
//   int64_t runs_per_row() const
//   int64_t run_bytes() const
//   BitImage image() const         what the rows are windows of, if they are
//   int64_t memory_bytes() const   what gather wants for rows that it has to copy
//   int64_t gather(int64_t first, int64_t count, int64_t group, const uint8_t** runs, uint8_t* memory,
//                  TapSpan* spans) const
//       points at the runs of rows first .. first + count - 1 of a group, and returns how many spans they are.
//       Padded taps, which gather makes +1, are valid where they are to count.
template <class RowSource>
Status multiply(const ProductKernels& kernels, const RowSource& source, int64_t M, const PackedWeight& weight,
                const Epilogue& epilogue, const Parallel& pool) {
  const WeightShape& shape = weight.shape;
  const bool to_bits = epilogue.kind == Epilogue::Kind::kThreshold;
  const KernelChoice choice = choose_kernel(kernels, shape, M, to_bits);
  if (choice == KernelChoice::kTiles)
    return kernels.tiles.multiply(kernels, AnyRows::of(source), M, weight, epilogue, pool);
  const detail::BlockProduct<RowSource> product = {
      source, weight, epilogue, kernels, product_kernel(kernels, choice), BlockGrid(M, shape, pool.threads), M};
  return run_tasks<detail::BlockWorker<RowSource>>(product, pool);
}

// A weight in another layout than a kernel reads is packed again into `storage`: right, but slow, and only met where an
// implementation is forced after packing, or a weight was packed for another op.
Status in_layout(const WeightLayout& layout, const PackedWeight& weight, std::unique_ptr<uint8_t[]>* storage,
                 PackedWeight* result, const Parallel& pool);

}  // namespace stompp
