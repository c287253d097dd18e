// One thread's part of a product on tiles.
//
// A block is some panels of weights and a range of rows. For each part of K and each pair of tiles of rows (a pass) the
// pair is multiplied with one panel after the other. Bits are expanded beside the products, which leave the processor's
// other ports idle: the next pass's rows, in the first pass of a part of K the next panel's weights, and the finishing
// of the last panel's sums. Each gets an equal share at every step of 64 products.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>

#include "core/amx/expand.h"
#include "core/amx/plan.h"
#include "core/amx/tiles.h"
#include "core/implementation.h"

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
  // The same of those left over.
  bool take_rest() {
    if (left_ == 0) return false;
    --left_;
    return true;
  }

 private:
  int64_t tasks_ = 0, steps_ = 1, left_ = 0, credit_ = 0;
};

// The rows of a pair of tiles.
struct PairRows {
  int64_t first, count;
  const uint8_t** runs;  // as RowSource's gather leaves them
  uint8_t* copies;
  TapSpan spans[2 * kTileRows];
  const ValidTaps* valid[2 * kTileRows];
  bool padded[2 * kTileRows];  // has taps that do not count
  int8_t* expanded;            // [part's steps][2 tiles][16 rows][64]
};

// Machine has the types Tiles and Expand, and its Limits.
template <class Machine>
class Worker {
 public:
  Worker(const Plan& plan, const Implementation& implementation);
  bool failed() const { return memory_ == nullptr; }
  void run(int64_t item);

 private:
  using Block = TileBlock<typename Machine::Tiles>;
  using Expand = typename Machine::Expand;

  static constexpr int64_t kSums = kSumTiles * kTileBytes / static_cast<int64_t>(sizeof(int32_t));
  static constexpr int64_t kFinishRows = 8;  // together, as a task

  // A panel's sums that are not finished yet.
  struct Pending {
    Dots dots;
    int32_t spare[2 * kTileRows];  // what the bits past taps' ends added to each row's sums
  };

  void run_block(int64_t group, int64_t block);
  void run_pass(int64_t pass);
  void multiply_panel(int64_t pass, int64_t panel);
  void write_sums(const PairRows& rows, int64_t panel);

  void gather(int64_t pass, PairRows* rows);
  void expand_next_row();
  void expand_padded(const BitRuns& bits, const ValidTaps& valid, int8_t* out);
  void find_valid_bytes(const ValidTaps& taps);
  BitRuns bits_of(const PairRows& rows, int64_t row);
  static const uint8_t* step_of(const BitRuns& bits, int64_t step) {
    const int64_t byte = bits.offset + step * kStepBytes;
    return bits.runs[byte / bits.run_bytes] + byte % bits.run_bytes;
  }
  // Whether each row of a panel's sums becomes a whole word of bits.
  bool writes_words(const Dots& dots) const {
    return plan_.epilogue.kind == Epilogue::Kind::kThreshold && dots.count == kPanelOutputs && dots.n % kWordBits == 0;
  }
  void to_words(const Dots& dots);
  void start_weights(int64_t part, int64_t panel);
  void expand_next_weights();
  void finish_next_rows();
  void work_beside();

  int64_t passes() const { return plan_.parts * pairs_; }
  int64_t pair_of(int64_t pass) const { return pass % pairs_; }
  int64_t part_of(int64_t pass) const { return pass / pairs_; }
  int64_t outputs(int64_t panel) const {
    const int64_t left = plan_.weight.shape.group_outputs() - (first_panel_ + panel) * kPanelOutputs;
    return left < kPanelOutputs ? left : kPanelOutputs;
  }
  bool is_half(int64_t panel) const { return outputs(panel) <= kPanelOutputs / 2; }
  // Where a panel's weights lie expanded. There is room for one panel more than a block has, so that a part's first
  // panel is expanded while the part before it is still read.
  int8_t* expanded_weights(int64_t part, int64_t panel) const {
    const int64_t slot = (panel + part * panels_) % (panels_ + 1);
    return weights_ + slot * plan_.most_part_steps() * kTileStep;
  }

  const Plan& plan_;
  const Implementation& implementation_;

  std::unique_ptr<uint8_t[]> memory_;
  PairRows rows_[2];  // of the passes with even and with odd numbers
  int8_t* weights_ = nullptr;
  int32_t* sums_ = nullptr;     // [pair][panel][kSums], between parts of K
  int32_t* scratch_ = nullptr;  // [32 rows][32 outputs]
  uint8_t* row_bits_ = nullptr;
  uint8_t* valid_bytes_ = nullptr;  // bit b of byte s: byte b of step s is of a tap that counts
  ValidTaps valid_taps_ = {-1, -1, -1, -1};

  // The block.
  int64_t group_ = 0, first_pair_ = 0, pairs_ = 0, first_panel_ = 0, panels_ = 0;

  // Work beside the products.
  Share row_share_, weight_share_, finish_share_;
  int64_t next_pass_ = 0, next_row_ = 0;
  int64_t first_step_ = 0, whole_steps_ = 0, end_steps_ = 0;  // of the next pass: all whole ones, and that with a tail
  bool in_steps_ = false;                                     // runs are whole steps, which are expanded where they lie
  int64_t first_run_ = 0, run_offset_ = 0;
  int8_t* row_out_ = nullptr;
  bool half_weights_ = false;
  const uint8_t* weight_bits_ = nullptr;
  int8_t* weight_out_ = nullptr;
  int64_t next_finished_ = 0;
  Pending pending_ = {};
};

template <class Machine>
Worker<Machine>::Worker(const Plan& plan, const Implementation& implementation)
    : plan_(plan), implementation_(implementation) {
  constexpr int64_t kLine = 64;
  const int64_t part_bytes = plan.most_part_steps() * kTileStep;
  const int64_t kept = plan.parts == 1 ? 0 : plan.range_pairs * plan.block_panels;
  const int64_t sizes[] = {2 * part_bytes,
                           (plan.block_panels + 1) * part_bytes,
                           kept * kSums * static_cast<int64_t>(sizeof(int32_t)),
                           kSums * static_cast<int64_t>(sizeof(int32_t)),
                           round_up(plan.steps * kStepBytes, kLine),
                           round_up(plan.steps, kLine),
                           round_up(2 * kBlockRows * plan.source.runs_per_row * 8, kLine),
                           2 * round_up(plan.source.memory_bytes, kLine)};
  int64_t total = kLine;
  for (const int64_t size : sizes) total += size;
  memory_.reset(new (std::nothrow) uint8_t[static_cast<size_t>(total)]);
  if (memory_ == nullptr) return;
  uint8_t* at = memory_.get();
  at += kLine - static_cast<int64_t>(reinterpret_cast<uintptr_t>(at) % kLine);
  uint8_t* parts[sizeof(sizes) / sizeof(sizes[0])];
  for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); at += sizes[i++]) parts[i] = at;
  weights_ = reinterpret_cast<int8_t*>(parts[1]);
  sums_ = reinterpret_cast<int32_t*>(parts[2]);
  scratch_ = reinterpret_cast<int32_t*>(parts[3]);
  row_bits_ = parts[4];
  valid_bytes_ = parts[5];
  for (int64_t i = 0; i < 2; ++i) {
    rows_[i].expanded = reinterpret_cast<int8_t*>(parts[0] + i * part_bytes);
    rows_[i].runs = reinterpret_cast<const uint8_t**>(parts[6]) + i * kBlockRows * plan.source.runs_per_row;
    rows_[i].copies = parts[7] + i * round_up(plan.source.memory_bytes, kLine);
  }
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
  const int64_t first = first_pair_ * plan_.pair_rows(), rows = pairs_ * plan_.pair_rows();
  clear_bits(plan_.epilogue, first, plan_.M - first < rows ? plan_.M - first : rows);
  for (int64_t block = 0; block < plan_.blocks(); ++block)
    run_block(block / plan_.group_blocks, block % plan_.group_blocks);
}

template <class Machine>
void Worker<Machine>::run_block(int64_t group, int64_t block) {
  const int64_t all_panels = plan_.weight.shape.panels_per_group();
  group_ = group;
  first_panel_ = block * plan_.block_panels;
  panels_ = all_panels - first_panel_ < plan_.block_panels ? all_panels - first_panel_ : plan_.block_panels;
  in_steps_ = plan_.source.run_bytes % kStepBytes == 0;
  next_pass_ = 0;
  gather(0, &rows_[0]);
  row_share_.start(rows_[0].count, 1);
  while (row_share_.take_rest()) expand_next_row();
  start_weights(0, 0);
  while (weight_share_.take_rest()) expand_next_weights();
  for (int64_t pass = 0; pass < passes(); ++pass) run_pass(pass);
  while (finish_share_.take_rest()) finish_next_rows();
}

template <class Machine>
void Worker<Machine>::run_pass(int64_t pass) {
  const int64_t steps = plan_.part_steps(part_of(pass));
  next_pass_ = pass + 1;
  if (next_pass_ < passes()) {
    PairRows* next = &rows_[next_pass_ % 2];
    gather(next_pass_, next);
    row_share_.start(next->count, steps * panels_);
  }
  for (int64_t panel = 0; panel < panels_; ++panel) multiply_panel(pass, panel);
  while (row_share_.take_rest()) expand_next_row();
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
  const PairRows& rows = rows_[pass % 2];
  const int8_t *a = rows.expanded, *w = expanded_weights(part, panel);
  const bool half = is_half(panel);
  for (int64_t step = 0; step < steps; ++step, a += kTileStep, w += kTileStep) {
    half ? Block::half_step(a, w) : Block::step(a, w);
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
  const bool whole = count == kPanelOutputs && rows.count == plan_.pair_rows() && plan_.spare_bits == 0;
  if (epilogue.kind == Epilogue::Kind::kInt32 && whole) {
    int32_t* out = static_cast<int32_t*>(epilogue.out) + rows.first * epilogue.N + n;
    Block::store(plan_.tile_rows, false, out, epilogue.N);
    return;
  }
  Block::store(plan_.tile_rows, is_half(panel), scratch_, kPanelOutputs);
  pending_.dots = {rows.first, rows.count, n, count, scratch_, kPanelOutputs};
  if (plan_.spare_bits != 0)
    for (int64_t r = 0; r < rows.count; ++r)
      pending_.spare[r] = static_cast<int32_t>(plan_.spare_bits * rows.valid[r]->count());
  next_finished_ = 0;
  finish_share_.start(ceil_div(rows.count, kFinishRows), plan_.part_steps(0));
}

template <class Machine>
void Worker<Machine>::finish_next_rows() {
  const Dots& all = pending_.dots;
  const int64_t left = all.rows - next_finished_;
  Dots dots = all;
  dots.first_row += next_finished_;
  dots.rows = left < kFinishRows ? left : kFinishRows;
  dots.values += next_finished_ * all.stride;
  if (plan_.spare_bits != 0)
    for (int64_t r = 0; r < dots.rows; ++r)
      for (int64_t i = 0; i < dots.count; ++i) dots.values[r * dots.stride + i] -= pending_.spare[next_finished_ + r];
  next_finished_ += dots.rows;
  if (writes_words(dots))
    to_words(dots);
  else
    finish(plan_.epilogue, implementation_, dots);
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
  while (row_share_.take()) expand_next_row();
  weight_share_.step();
  while (weight_share_.take()) expand_next_weights();
  finish_share_.step();
  while (finish_share_.take()) finish_next_rows();
}

template <class Machine>
void Worker<Machine>::gather(int64_t pass, PairRows* rows) {
  rows->first = (first_pair_ + pair_of(pass)) * plan_.pair_rows();
  const int64_t left = plan_.M - rows->first;
  rows->count = left < plan_.pair_rows() ? left : plan_.pair_rows();
  const int64_t spans = plan_.source.gather(rows->first, rows->count, group_, rows->runs, rows->copies, rows->spans);
  for (int64_t span = 0, r = 0; span < spans; ++span) {
    const ValidTaps& valid = rows->spans[span].valid;
    const bool padded = valid.count() != plan_.weight.shape.taps();
    for (int64_t i = 0; i < rows->spans[span].rows; ++i, ++r) {
      rows->valid[r] = &valid;
      rows->padded[r] = padded;
    }
  }
  const int64_t part = part_of(pass), end = plan_.part_begin(part + 1), whole = plan_.row_bytes / kStepBytes;
  first_step_ = plan_.part_begin(part);
  whole_steps_ = (end < whole ? end : whole) - first_step_;
  end_steps_ = end - first_step_;
  const int64_t byte = first_step_ * kStepBytes;
  first_run_ = in_steps_ ? byte / plan_.source.run_bytes : 0;
  run_offset_ = in_steps_ ? byte % plan_.source.run_bytes : byte;
  next_row_ = 0;
  row_out_ = rows->expanded;
}

// The bits of a row, from the part of K on.
template <class Machine>
BitRuns Worker<Machine>::bits_of(const PairRows& rows, int64_t row) {
  const int64_t run_bytes = plan_.source.run_bytes, run_count = plan_.source.runs_per_row;
  if (in_steps_) return {rows.runs + row * run_count + first_run_, run_offset_, run_bytes};
  const int64_t bytes = plan_.steps * kStepBytes;
  copy_row({rows.runs, run_count, run_bytes, rows.count, bytes}, row, row_bits_);
  return {&row_bits_, run_offset_, bytes};
}

template <class Machine>
void Worker<Machine>::expand_next_row() {
  const PairRows& rows = rows_[next_pass_ % 2];
  const int64_t row = next_row_++;
  int8_t* out = row_out_;
  row_out_ += next_row_ == plan_.tile_rows ? kTileBytes - (plan_.tile_rows - 1) * kTileRowBytes : kTileRowBytes;
  const BitRuns bits = bits_of(rows, row);
  if (rows.padded[row]) return expand_padded(bits, *rows.valid[row], out);
  Expand::row(bits, whole_steps_, out);
  if (whole_steps_ == end_steps_) return;
  const uint8_t bytes = static_cast<uint8_t>((1 << plan_.row_bytes % kStepBytes) - 1);
  Expand::part_of_row(step_of(bits, whole_steps_), bytes, out + whole_steps_ * kTileStep);
}

// A padded tap becomes zeros, which add nothing.
template <class Machine>
void Worker<Machine>::expand_padded(const BitRuns& bits, const ValidTaps& valid, int8_t* out) {
  if (!(valid == valid_taps_)) find_valid_bytes(valid);
  for (int64_t step = 0; step < end_steps_; ++step, out += kTileStep)
    Expand::part_of_row(step_of(bits, step), valid_bytes_[first_step_ + step], out);
}

template <class Machine>
void Worker<Machine>::find_valid_bytes(const ValidTaps& taps) {
  const WeightShape& shape = plan_.weight.shape;
  std::memset(valid_bytes_, 0, static_cast<size_t>(plan_.steps));
  for (int64_t h = taps.h_begin; h < taps.h_end; ++h) {
    const int64_t first = (h * shape.kernel_w + taps.w_begin) * shape.tap_bytes();
    const int64_t last = (h * shape.kernel_w + taps.w_end) * shape.tap_bytes();
    for (int64_t byte = first; byte < last; ++byte)
      valid_bytes_[byte / kStepBytes] |= static_cast<uint8_t>(1 << byte % kStepBytes);
  }
  valid_taps_ = taps;
}

template <class Machine>
void Worker<Machine>::start_weights(int64_t part, int64_t panel) {
  const int64_t steps = plan_.part_steps(part);
  half_weights_ = is_half(panel);
  weight_bits_ = plan_.weight.panel(group_, first_panel_ + panel) + plan_.part_begin(part) * kStepBytes * kPanelOutputs;
  weight_out_ = expanded_weights(part, panel);
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
