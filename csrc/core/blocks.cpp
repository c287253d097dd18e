#include "core/blocks.h"

namespace stompp {
namespace {

constexpr int64_t kLine = 64;
constexpr int64_t kDotBytes = kBlockRows * kBlockPanels * kPanelOutputs * static_cast<int64_t>(sizeof(int32_t));
static_assert(kDotBytes % kLine == 0, "what follows the dot products begins on a cache line");

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
  // Equal blocks, of whole pairs of rows: a short last one would split the weights' bits for few rows.
  rows = row_blocks == 0 ? kBlockRows : round_up(ceil_div(M, row_blocks), 2);
  row_blocks = ceil_div(M, rows);
}

namespace detail {

BlockMemory::BlockMemory(int64_t scratch_bytes, int64_t row_bytes) : dots(nullptr), scratch(nullptr), rows(nullptr) {
  const int64_t row_offset = kDotBytes + round_up(scratch_bytes, kLine);
  bytes_.reset(new (std::nothrow) uint8_t[static_cast<size_t>(row_offset + row_bytes + kLine)]);
  if (bytes_ == nullptr) return;
  const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(bytes_.get()) % kLine);
  uint8_t* start = bytes_.get() + (kLine - misaligned);
  dots = reinterpret_cast<int32_t*>(start);
  scratch = start + kDotBytes;
  rows = start + row_offset;
}

void PaddingSums::add_up(const PackedWeight& weight, const ValidTaps& valid, const Dots& dots, Entry* entry) {
  const WeightShape& shape = weight.shape;
  entry->valid = valid;
  entry->n = dots.n;
  entry->count = dots.count;
  for (int64_t i = 0; i < dots.count; ++i) entry->sums[i] = 0;
  for (int64_t h = 0; h < shape.kernel_h; ++h)
    for (int64_t w = 0; w < shape.kernel_w; ++w) {
      if (h >= valid.h_begin && h < valid.h_end && w >= valid.w_begin && w < valid.w_end) continue;
      const int32_t* tap = weight.tap_sums + (h * shape.kernel_w + w) * shape.out_channels + dots.n;
      for (int64_t i = 0; i < dots.count; ++i) entry->sums[i] += tap[i];
    }
}

void PaddingSums::subtract(const PackedWeight& weight, const ValidTaps* valid, const Dots& dots) {
  const int64_t kernel_h = weight.shape.kernel_h, kernel_w = weight.shape.kernel_w;
  for (int64_t r = 0; r < dots.rows; ++r) {
    const ValidTaps& inside = valid[r];
    if (inside.h_end - inside.h_begin == kernel_h && inside.w_end - inside.w_begin == kernel_w) continue;
    const int side = (inside.h_begin > 0 ? 8 : 0) + (inside.h_end < kernel_h ? 4 : 0) + (inside.w_begin > 0 ? 2 : 0) +
                     (inside.w_end < kernel_w ? 1 : 0);
    Entry& entry = entries_[side];
    if (entry.n != dots.n || entry.count != dots.count || !(entry.valid == inside))
      add_up(weight, inside, dots, &entry);
    int32_t* __restrict row = dots.values + r * dots.stride;
    const int32_t* __restrict sums = entry.sums;
    for (int64_t i = 0; i < dots.count; ++i) row[i] -= sums[i];
  }
}

}  // namespace detail

Status in_layout_of(const Implementation& implementation, const PackedWeight& weight,
                    std::unique_ptr<uint8_t[]>* storage, PackedWeight* result, const Parallel& pool) {
  if (weight.layout.id == layout_for(weight.shape, implementation.layout).id) {
    *result = weight;
    return Status::ok();
  }
  const WeightShape& shape = weight.shape;
  const int64_t bytes = packed_bytes(shape, implementation.layout);
  const int64_t word_count = shape.out_channels * shape.taps() * words_for(shape.in_channels);
  std::unique_ptr<uint32_t[]> words(new (std::nothrow) uint32_t[static_cast<size_t>(word_count)]);
  storage->reset(new (std::nothrow) uint8_t[static_cast<size_t>(bytes)]);
  if (words == nullptr || *storage == nullptr) return Status::error("out of memory");
  Status status = unpack_weight_words(weight, words.get(), pool);
  if (status.is_ok()) status = pack_weight_words(words.get(), shape, implementation.layout, storage->get(), pool);
  if (status.is_ok()) status = view_packed(storage->get(), bytes, shape, result);
  return status;
}

}  // namespace stompp
