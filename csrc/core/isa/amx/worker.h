// One thread's part of a product on tiles.
//
// A block is some panels of weights and a range of rows. For each part of K and each pair of tiles of rows (a pass) the
// pair is multiplied with one panel after the other. Bits are expanded beside the products, which leave the processor's
// other ports idle: the next pass's rows, in the first pass of a part of K the next panel's weights, and the finishing
// of the last panel's sums. Each gets an equal share at every step of 64 products.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/base/scratch.h"
#include "core/isa/amx/expanded_image.h"
#include "core/isa/amx/gathered_rows.h"
#include "core/isa/amx/pair_rows.h"
#include "core/isa/amx/plan.h"
#include "core/isa/amx/tiles.h"
#include "core/product/kernels.h"

namespace stompp {
namespace amx {

// Tasks spread evenly over steps.
class Share {
 public:
  void start(int64_t tasks, int64_t steps) {
    left_ = tasks_ = tasks;
    steps_ = steps;
    credit_ = 0;
  }
  void step() { credit_ += tasks_; }
  // Whether another task is due, which then counts as done.
  bool take() {
    if (credit_ < steps_ || left_ == 0) return false;
    credit_ -= steps_;
    --left_;
    return true;
  }
  // Takes one of those left over.
  bool take_rest() {
    if (left_ == 0) return false;
    --left_;
    return true;
  }

 private:
  int64_t tasks_ = 0, steps_ = 1, left_ = 0, credit_ = 0;
};

// What every thread reads. Machine has the types Tiles and Expand, and its Limits.
template <class Machine>
struct Product {
  const Plan plan;
  const ProductKernels& kernels;

  int64_t tasks() const { return plan.items(); }
};

// One thread's memory, tile registers and work.
template <class Machine>
class Worker {
 public:
  explicit Worker(const Product<Machine>& product);
  ~Worker() {
    if (!failed()) Machine::Tiles::release();
  }
  bool failed() const { return memory_ == nullptr; }
  void run(int64_t item);

 private:
  using Block = TileBlock<typename Machine::Tiles>;
  using Expand = typename Machine::Expand;

  static constexpr int64_t kSums = kSumTiles * kTileBytes / static_cast<int64_t>(sizeof(int32_t));
  static constexpr int64_t kFinishRows = 8;  // together, as a task
  static constexpr int64_t kPointer = static_cast<int64_t>(sizeof(const uint8_t*));

  // A panel's sums that are not finished yet, and the next of them.
  struct Pending {
    const PairRows* rows;
    int64_t n, count, span, row;
  };

  void run_block(int64_t group, int64_t block);
  void run_pass(int64_t pass);
  void multiply_panel(int64_t pass, int64_t panel);
  void write_sums(const PairRows& rows, int64_t panel);

  int64_t start_rows(int64_t pass);
  void expand_next_rows() { plan_.from_image ? image_.run_task() : gathered_.run_task(); }
  // Whether each row of a panel's sums becomes a whole word of bits.
  bool writes_words(const Dots& dots) const {
    return plan_.epilogue.kind == Epilogue::Kind::kThreshold && dots.count == kPanelOutputs && dots.n % kWordBits == 0;
  }
  void to_words(const Dots& dots);
  void start_weights(int64_t part, int64_t panel);
  void expand_next_weights();
  void finish_next_rows();
  void work_beside();
  // Asks for a step's share of the sums that the next panel goes on with: they lie in the second cache.
  static void fetch_sums(const int32_t* sums, int64_t step) {
    constexpr int64_t kLines = 4, kLineSums = 16;
    for (int64_t line = kLines * step; line < kLines * (step + 1); ++line) __builtin_prefetch(sums + line * kLineSums);
  }

  int64_t passes() const { return plan_.parts * pairs_; }
  int64_t pair_of(int64_t pass) const { return pass % pairs_; }
  int64_t part_of(int64_t pass) const { return pass / pairs_; }
  int64_t outputs(int64_t panel) const {
    const int64_t left = plan_.weight.shape.group_outputs() - (first_panel_ + panel) * kPanelOutputs;
    return left < kPanelOutputs ? left : kPanelOutputs;
  }
  bool is_half(int64_t panel) const { return outputs(panel) <= kPanelOutputs / 2; }
  // Where a panel's weights lie expanded. A step of the next part of K may replace one that is read no more.
  int8_t* expanded_weights(int64_t panel) const { return weights_ + panel * plan_.most_part_steps() * kTileStep; }

  const Plan& plan_;
  const ProductKernels& kernels_;

  Scratch<uint8_t> memory_;
  GatheredRows<Expand> gathered_;
  ExpandedImage<Expand> image_;
  // The rows of this pass, the next and the one before, whose last sums may not be finished yet.
  PairRows rows_[3];
  int8_t* weights_ = nullptr;
  int32_t* sums_ = nullptr;     // [pair][panel][kSums], between parts of K
  int32_t* scratch_ = nullptr;  // [2 tiles][16 rows][32 outputs]

  // The block.
  int64_t group_ = 0, first_pair_ = 0, pairs_ = 0, first_panel_ = 0, panels_ = 0;

  // Work beside the products.
  Share row_share_, weight_share_, finish_share_;
  bool half_weights_ = false;
  const uint8_t* weight_bits_ = nullptr;
  int8_t* weight_out_ = nullptr;
  Pending pending_ = {};
};

template <class Machine>
Worker<Machine>::Worker(const Product<Machine>& product)
    : plan_(product.plan), kernels_(product.kernels), gathered_(product.plan), image_(product.plan) {
  const Plan& plan = plan_;
  constexpr int64_t kLine = kScratchAlignment;
  const int64_t part_bytes = plan.most_part_steps() * kTileStep;
  const int64_t kept = plan.parts == 1 ? 0 : plan.range_pairs * plan.block_panels;
  const int64_t of_sums = kSums * static_cast<int64_t>(sizeof(int32_t));
  const int64_t image_bytes = plan.from_image ? ExpandedImage<Expand>::memory_bytes(plan) : 0;
  const int64_t row_bytes = plan.from_image ? 0 : part_bytes;
  const int64_t run_bytes = plan.from_image ? 0 : kBlockRows * plan.source.runs_per_row * kPointer;
  const int64_t copy_bytes = plan.from_image ? 0 : plan.source.memory_bytes;
  const int64_t sizes[] = {plan.block_panels * part_bytes,
                           kept * of_sums,
                           of_sums,
                           plan.steps * kStepBytes,
                           plan.steps * kStepBytes,
                           image_bytes,
                           plan.source.image.batch > 1 ? image_bytes : 0,
                           row_bytes,
                           row_bytes,
                           run_bytes,
                           run_bytes,
                           copy_bytes,
                           copy_bytes};
  constexpr size_t kParts = sizeof(sizes) / sizeof(sizes[0]);
  int64_t total = 0;
  for (const int64_t size : sizes) total += round_up(size, kLine);
  memory_ = scratch_of<uint8_t>(total);
  if (memory_ == nullptr) return;
  uint8_t *at = memory_.get(), *parts[kParts];
  for (size_t i = 0; i < kParts; at += round_up(sizes[i++], kLine)) parts[i] = at;
  const auto bytes = [&parts](int part) { return reinterpret_cast<int8_t*>(parts[part]); };
  const auto runs = [&parts](int part) { return reinterpret_cast<const uint8_t**>(parts[part]); };
  weights_ = bytes(0);
  sums_ = reinterpret_cast<int32_t*>(parts[1]);
  scratch_ = reinterpret_cast<int32_t*>(parts[2]);
  if (plan.from_image)
    image_.set_memory(bytes(5), bytes(6), reinterpret_cast<int64_t*>(parts[3]));
  else
    gathered_.set_memory({bytes(7), runs(9), parts[11]}, {bytes(8), runs(10), parts[12]}, parts[3], parts[4]);
  Machine::Tiles::configure(Block::shapes(plan.tile_rows));
}

template <class Machine>
void Worker<Machine>::run(int64_t item) {
  const int64_t range = item / plan_.range_items();
  first_pair_ = range * plan_.range_pairs;
  pairs_ = plan_.pairs - first_pair_ < plan_.range_pairs ? plan_.pairs - first_pair_ : plan_.range_pairs;
  if (!plan_.whole_rows) {
    const int64_t block = item % plan_.range_items();
    run_block(block / plan_.group_blocks, block % plan_.group_blocks);
    return;
  }
  const int64_t first = plan_.first_row(first_pair_);
  clear_bits(plan_.epilogue, first, plan_.first_row(first_pair_ + pairs_) - first);
  for (int64_t block = 0; block < plan_.blocks(); ++block)
    run_block(block / plan_.group_blocks, block % plan_.group_blocks);
}

template <class Machine>
void Worker<Machine>::run_block(int64_t group, int64_t block) {
  const int64_t all_panels = plan_.weight.shape.panels_per_group();
  group_ = group;
  first_panel_ = block * plan_.block_panels;
  panels_ = all_panels - first_panel_ < plan_.block_panels ? all_panels - first_panel_ : plan_.block_panels;
  row_share_.start(start_rows(0), 1);
  while (row_share_.take_rest()) expand_next_rows();
  start_weights(0, 0);
  while (weight_share_.take_rest()) expand_next_weights();
  for (int64_t pass = 0; pass < passes(); ++pass) run_pass(pass);
  while (finish_share_.take_rest()) finish_next_rows();
}

template <class Machine>
void Worker<Machine>::run_pass(int64_t pass) {
  const int64_t steps = plan_.part_steps(part_of(pass));
  if (pass + 1 < passes()) row_share_.start(start_rows(pass + 1), steps * panels_);
  for (int64_t panel = 0; panel < panels_; ++panel) multiply_panel(pass, panel);
  while (row_share_.take_rest()) expand_next_rows();
}

// Begins to expand the rows of a pass.
template <class Machine>
int64_t Worker<Machine>::start_rows(int64_t pass) {
  const int64_t pair = first_pair_ + pair_of(pass);
  PairRows* rows = &rows_[pass % 3];
  if (plan_.from_image) return image_.start(group_, pair, rows);
  return gathered_.start(group_, pair, part_of(pass), pass % 2, rows);
}

template <class Machine>
void Worker<Machine>::multiply_panel(int64_t pass, int64_t panel) {
  const int64_t part = part_of(pass), pair = pair_of(pass), steps = plan_.part_steps(part);
  if (pair == 0 && panel + 1 < panels_)
    start_weights(part, panel + 1);
  else if (pair == pairs_ - 1 && panel == panels_ - 1 && part + 1 < plan_.parts)
    start_weights(part + 1, 0);

  int32_t* kept = sums_ + (pair * panels_ + panel) * kSums;
  if (part == 0)
    Block::zero();
  else
    Block::load(kept);
  const PairRows& rows = rows_[pass % 3];
  const int8_t* weights = expanded_weights(panel);
  const int64_t* offsets = plan_.from_image ? image_.offsets() : nullptr;
  const bool half = is_half(panel);
  for (int64_t step = 0; step < steps; ++step, weights += kTileStep) {
    const int64_t offset = offsets != nullptr ? offsets[step] : step * kTileStep;
    const TilesOfRows tiles = {rows.tiles.first + offset, rows.tiles.second + offset, rows.tiles.stride};
    half ? Block::half_step(tiles, weights) : Block::step(tiles, weights);
    if (plan_.parts > 1) fetch_sums(kept + kSums, step);
    work_beside();
  }
  while (weight_share_.take_rest()) expand_next_weights();
  while (finish_share_.take_rest()) finish_next_rows();
  if (part + 1 < plan_.parts)
    Block::keep(kept);
  else
    write_sums(rows, panel);
}

// Whole panels of integers go to where they are wanted, everything else through the scratch memory.
template <class Machine>
void Worker<Machine>::write_sums(const PairRows& rows, int64_t panel) {
  const Epilogue& epilogue = plan_.epilogue;
  const int64_t count = outputs(panel);
  const int64_t n = group_ * plan_.weight.shape.group_outputs() + (first_panel_ + panel) * kPanelOutputs;
  const bool whole = count == kPanelOutputs && rows.is_full(plan_.tile_rows) && plan_.spare_bits == 0;
  if (epilogue.kind == Epilogue::Kind::kInt32 && whole) {
    int32_t* out = static_cast<int32_t*>(epilogue.out) + n;
    Block::store(false, out + rows.spans[0].first * epilogue.N, out + rows.spans[1].first * epilogue.N, epilogue.N);
    return;
  }
  Block::store(is_half(panel), scratch_, scratch_ + kTileRows * kPanelOutputs, kPanelOutputs);
  pending_ = {&rows, n, count, 0, 0};
  int64_t tasks = 0;
  for (int64_t span = 0; span < rows.span_count; ++span) tasks += ceil_div(rows.spans[span].count, kFinishRows);
  finish_share_.start(tasks, plan_.part_steps(plan_.parts - 1));
}

template <class Machine>
void Worker<Machine>::finish_next_rows() {
  Pending& now = pending_;
  const RowSpan& span = now.rows->spans[now.span];
  const int64_t left = span.count - now.row, rows = left < kFinishRows ? left : kFinishRows;
  int32_t* sums = scratch_ + (span.row + now.row) * kPanelOutputs;
  if (plan_.spare_bits != 0)
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < now.count; ++i) sums[r * kPanelOutputs + i] -= now.rows->spare[span.row + now.row + r];
  const Dots dots = {span.first + now.row, rows, now.n, now.count, sums, kPanelOutputs};
  if (writes_words(dots))
    to_words(dots);
  else
    finish(plan_.epilogue, kernels_, dots);
  now.row += rows;
  if (now.row < span.count) return;
  ++now.span;
  now.row = 0;
}

template <class Machine>
void Worker<Machine>::to_words(const Dots& dots) {
  const Epilogue& e = plan_.epilogue;
  const int64_t words = words_for(e.N), word = dots.n / kWordBits, at = dots.first_row * words + word;
  const int32_t* thresholds = e.thresholds + dots.n;
  const uint32_t* residual = e.residual_words == nullptr ? nullptr : e.residual_words + at;
  Expand::to_bits({dots.values, dots.rows, thresholds, residual == nullptr ? nullptr : thresholds + e.N, residual,
                   e.flip_words[word], static_cast<uint32_t*>(e.out) + at, words});
}

template <class Machine>
void Worker<Machine>::work_beside() {
  row_share_.step();
  while (row_share_.take()) expand_next_rows();
  weight_share_.step();
  while (weight_share_.take()) expand_next_weights();
  finish_share_.step();
  while (finish_share_.take()) finish_next_rows();
}

template <class Machine>
void Worker<Machine>::start_weights(int64_t part, int64_t panel) {
  const int64_t steps = plan_.part_steps(part);
  half_weights_ = is_half(panel);
  weight_bits_ = plan_.weight.panel(group_, first_panel_ + panel) + plan_.part_begin(part) * kStepBytes * kPanelOutputs;
  weight_out_ = expanded_weights(panel);
  weight_share_.start(steps, steps);
}

template <class Machine>
void Worker<Machine>::expand_next_weights() {
  Expand::weights(weight_bits_, half_weights_, weight_out_);
  weight_bits_ += kStepBytes * kPanelOutputs;
  weight_out_ += kTileStep;
}

}  // namespace amx
}  // namespace stompp
