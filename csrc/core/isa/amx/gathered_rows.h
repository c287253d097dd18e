// Rows that are gathered as bits and expanded, two tiles of them at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/isa/amx/expand.h"
#include "core/isa/amx/pair_rows.h"
#include "core/isa/amx/plan.h"
#include "core/isa/amx/tiles.h"
#include "core/product/rows.h"

namespace stompp {
namespace amx {

template <class Expand>
class GatheredRows {
 public:
  // Memory for the rows of a pair, of which there are two at a time, aligned to cache lines.
  struct Memory {
    int8_t* expanded;      // [a part's steps][2 tiles][16 rows][64]
    const uint8_t** runs;  // [kBlockRows][runs_per_row]
    uint8_t* copies;       // memory_bytes of the source
  };

  // row_bits and valid_bytes are [steps][kStepBytes] and [steps].
  GatheredRows(const Plan& plan) : plan_(plan) {}
  void set_memory(const Memory& even, const Memory& odd, uint8_t* row_bits, uint8_t* valid_bytes) {
    memory_[0] = even;
    memory_[1] = odd;
    row_bits_ = row_bits;
    valid_bytes_ = valid_bytes;
  }

  // Begins to expand a part of K of a pair's rows, into one memory or the other; returns in how many tasks.
  int64_t start(int64_t group, int64_t pair, int64_t part, int64_t parity, PairRows* rows);
  void run_task();

 private:
  BitRuns bits_of(int64_t row);
  void expand_padded(const BitRuns& bits, const ValidTaps& valid, int8_t* out);
  void find_valid_bytes(const ValidTaps& taps);
  static const uint8_t* step_of(const BitRuns& bits, int64_t step) {
    const int64_t byte = bits.offset + step * kStepBytes;
    return bits.runs[byte / bits.run_bytes] + byte % bits.run_bytes;
  }

  const Plan& plan_;
  Memory memory_[2] = {};
  uint8_t* row_bits_ = nullptr;
  uint8_t* valid_bytes_ = nullptr;  // bit b of byte s: byte b of step s is of a tap that counts
  ValidTaps valid_taps_ = {-1, -1, -1, -1};

  // The pair that is being expanded.
  const Memory* now_ = nullptr;
  TapSpan spans_[kPairRows];
  int64_t next_row_ = 0, span_ = 0, span_rows_ = 0;
  int64_t first_step_ = 0, whole_steps_ = 0, end_steps_ = 0;  // of the part: all whole ones, and that with a tail
  bool in_steps_ = false;                                     // runs are whole steps, expanded where they lie
  int64_t first_run_ = 0, run_offset_ = 0;
  int8_t* out_ = nullptr;
};

template <class Expand>
int64_t GatheredRows<Expand>::start(int64_t group, int64_t pair, int64_t part, int64_t parity, PairRows* rows) {
  now_ = &memory_[parity];
  const int64_t first = plan_.first_row(pair), count = plan_.first_row(pair + 1) - first;
  const int64_t in_first = count < plan_.tile_rows ? count : plan_.tile_rows;
  rows->clear();
  rows->add(0, first, in_first);
  rows->add(kTileRows, first + in_first, count - in_first);
  rows->tiles = {now_->expanded, now_->expanded + kTileBytes, kTileRowBytes};
  const int64_t spans = plan_.source.gather(first, count, group, now_->runs, now_->copies, spans_);
  if (plan_.spare_bits != 0)
    for (int64_t span = 0, r = 0; span < spans; ++span)
      for (int64_t i = 0; i < spans_[span].rows; ++i, ++r)
        rows->spare[r / plan_.tile_rows * kTileRows + r % plan_.tile_rows] =
            static_cast<int32_t>(plan_.spare_bits * spans_[span].valid.count());

  const int64_t end = plan_.part_begin(part + 1), whole = plan_.row_bytes / kStepBytes;
  first_step_ = plan_.part_begin(part);
  whole_steps_ = (end < whole ? end : whole) - first_step_;
  end_steps_ = end - first_step_;
  const int64_t byte = first_step_ * kStepBytes, run_bytes = plan_.source.run_bytes;
  in_steps_ = run_bytes % kStepBytes == 0;
  first_run_ = in_steps_ ? byte / run_bytes : 0;
  run_offset_ = in_steps_ ? byte % run_bytes : byte;
  next_row_ = span_ = span_rows_ = 0;
  out_ = now_->expanded;
  return count;
}

// The bits of a row, from the part of K on.
template <class Expand>
BitRuns GatheredRows<Expand>::bits_of(int64_t row) {
  const int64_t run_bytes = plan_.source.run_bytes, run_count = plan_.source.runs_per_row;
  if (in_steps_) return {now_->runs + row * run_count + first_run_, run_offset_, run_bytes};
  const int64_t bytes = plan_.steps * kStepBytes;
  copy_row({now_->runs, run_count, run_bytes, row + 1, bytes}, row, row_bits_);
  return {&row_bits_, run_offset_, bytes};
}

template <class Expand>
void GatheredRows<Expand>::run_task() {
  int8_t* out = out_;
  const BitRuns bits = bits_of(next_row_++);
  out_ += next_row_ == plan_.tile_rows ? kTileBytes - (plan_.tile_rows - 1) * kTileRowBytes : kTileRowBytes;
  if (span_rows_ == spans_[span_].rows) {
    ++span_;
    span_rows_ = 0;
  }
  ++span_rows_;
  const ValidTaps& valid = spans_[span_].valid;
  if (valid.count() != plan_.weight.shape.taps()) return expand_padded(bits, valid, out);
  Expand::row(bits, whole_steps_, out);
  if (whole_steps_ == end_steps_) return;
  const uint8_t bytes = static_cast<uint8_t>((1 << plan_.row_bytes % kStepBytes) - 1);
  Expand::part_of_row(step_of(bits, whole_steps_), bytes, out + whole_steps_ * kTileStep);
}

// A padded tap becomes zeros, which add nothing.
template <class Expand>
void GatheredRows<Expand>::expand_padded(const BitRuns& bits, const ValidTaps& valid, int8_t* out) {
  if (!(valid == valid_taps_)) find_valid_bytes(valid);
  for (int64_t step = 0; step < end_steps_; ++step, out += kTileStep)
    Expand::part_of_row(step_of(bits, step), valid_bytes_[first_step_ + step], out);
}

template <class Expand>
void GatheredRows<Expand>::find_valid_bytes(const ValidTaps& taps) {
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

}  // namespace amx
}  // namespace stompp
