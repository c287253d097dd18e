#include "core/product/blocks.h"

#include <new>

namespace stompp {
namespace {

constexpr int64_t kLine = kScratchAlignment;
constexpr int64_t kDotBytes = kBlockRows * kBlockPanels * kPanelOutputs * static_cast<int64_t>(sizeof(int32_t));
static_assert(kDotBytes % kLine == 0, "what follows the dot products begins on a cache line");

// Returns the limit for which dot < threshold, dot being start - 2 * pop, exactly where pop > limit.
int16_t limit_of(int32_t start, int32_t threshold) {
  const int64_t twice = static_cast<int64_t>(start) - threshold;
  const int64_t limit = twice >= 0 ? twice / 2 : -((1 - twice) / 2);  // rounded down
  return static_cast<int16_t>(limit < -1 ? -1 : limit > kMaxLimitK ? kMaxLimitK : limit);
}

}  // namespace

BlockGrid::BlockGrid(int64_t M, const WeightShape& shape, int threads) {
  group_units = ceil_div(shape.panels_per_group(), kBlockPanels);
  all_units = group_units * shape.groups;
  // Panels of unaligned groups share words of output bits, so then an item is whole rows: their words have one owner.
  const bool aligned = shape.groups == 1 || shape.group_outputs() % kPanelOutputs == 0;
  item_units = aligned ? 1 : all_units;

  row_blocks = ceil_div(M, kBlockRows);
  // A few items that threads cannot share evenly are cut into more, down to 8 rows.
  if (threads > 1 && items() < 8 * static_cast<int64_t>(threads) && items() % threads != 0) {
    const int64_t wanted = round_up(row_blocks, threads), most = ceil_div(M, 8);
    row_blocks = wanted < most ? wanted : most;
  }
  // Blocks are equal, of whole pairs of rows: a short last one would split the weights' bits for few rows.
  rows = row_blocks == 0 ? kBlockRows : round_up(ceil_div(M, row_blocks), 2);
  row_blocks = ceil_div(M, rows);
}

namespace detail {

BlockMemory::BlockMemory(int64_t scratch_bytes, int64_t runs_per_row, int64_t copy_bytes)
    : dots(nullptr), runs(nullptr), starts(nullptr), scratch(nullptr), copies(nullptr) {
  const int64_t run_bytes = kBlockRows * runs_per_row * static_cast<int64_t>(sizeof(const uint8_t*));
  const int64_t start_offset = kDotBytes + round_up(scratch_bytes, kLine);
  const int64_t run_offset = start_offset + kRowStarts * static_cast<int64_t>(sizeof(RowStart));
  const int64_t copy_offset = run_offset + round_up(run_bytes, kLine);
  bytes_ = scratch_of<uint8_t>(copy_offset + copy_bytes);
  if (bytes_ == nullptr) return;
  uint8_t* start = bytes_.get();
  dots = reinterpret_cast<int32_t*>(start);
  scratch = start + kDotBytes;
  starts = reinterpret_cast<RowStart*>(start + start_offset);
  runs = reinterpret_cast<const uint8_t**>(start + run_offset);
  copies = start + copy_offset;
}

void RowStarts::fill(const ValidTaps& valid, RowStart* entry) const {
  const WeightShape& shape = weight_.shape;
  entry->valid = valid;
  for (int32_t& start : entry->starts) start = static_cast<int32_t>(shape.K());
  for (int64_t h = 0; h < shape.kernel_h; ++h) {
    const bool in_line = h >= valid.h_begin && h < valid.h_end;
    if (!in_line && skips_lines_) {
      for (int32_t& start : entry->starts) start -= static_cast<int32_t>(shape.kernel_w * shape.in_channels);
      continue;
    }
    for (int64_t w = 0; w < shape.kernel_w; ++w) {
      if (in_line && w >= valid.w_begin && w < valid.w_end) continue;
      const int32_t* tap = weight_.tap_sums + (h * shape.kernel_w + w) * shape.out_channels + n_;
      for (int64_t i = 0; i < count_; ++i) entry->starts[i] -= tap[i];
    }
  }
  if (!with_limits_) return;
  for (int64_t set = 0; set < epilogue_.threshold_sets(); ++set) {
    const int32_t* thresholds = epilogue_.thresholds + set * epilogue_.N + n_;
    for (int64_t i = 0; i < count_; ++i) entry->limits[set][i] = limit_of(entry->starts[i], thresholds[i]);
    for (int64_t i = count_; i < kUnitOutputs; ++i) entry->limits[set][i] = kMaxLimitK;
  }
}

void RowStarts::set(const TapSpan* spans, int64_t span_count, int64_t n, int64_t count) {
  if (n != n_ || count != count_ || used_ + span_count > kRowStarts) used_ = 0;
  n_ = n;
  count_ = count;
  for (int64_t span = 0, r = 0; span < span_count; ++span) {
    const ValidTaps& valid = spans[span].valid;
    int64_t found = 0;
    while (found < used_ && !(entries_[found].valid == valid)) ++found;
    if (found == used_) fill(valid, &entries_[used_++]);
    for (int64_t i = 0; i < spans[span].rows; ++i, ++r) {
      starts[r] = entries_[found].starts;
      limits[r] = entries_[found].limits[0];
    }
  }
}

}  // namespace detail

Status in_layout(const WeightLayout& layout, const PackedWeight& weight, std::unique_ptr<uint8_t[]>* storage,
                 PackedWeight* result, const Parallel& pool) {
  if (weight.layout.id == layout_for(weight.shape, layout).id) {
    *result = weight;
    return Status::ok();
  }
  const WeightShape& shape = weight.shape;
  const int64_t bytes = packed_bytes(shape, layout);
  const int64_t word_count = shape.out_channels * shape.taps() * words_for(shape.in_channels);
  const Scratch<uint32_t> words = scratch_of<uint32_t>(word_count);
  storage->reset(new (std::nothrow) uint8_t[static_cast<size_t>(bytes)]);
  if (words == nullptr || *storage == nullptr) return Status::error("out of memory");
  Status status = unpack_weight_words(weight, words.get(), pool);
  if (status.is_ok()) status = pack_weight_words(words.get(), shape, layout, storage->get(), pool);
  if (status.is_ok()) status = view_packed(storage->get(), bytes, shape, result);
  return status;
}

}  // namespace stompp
