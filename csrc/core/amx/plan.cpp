#include "core/amx/plan.h"

#include "core/amx/expand.h"
#include "core/amx/tiles.h"

namespace stompp {
namespace amx {
namespace {

constexpr int64_t kSumBytes = kSumTiles * kTileBytes;

int64_t at_least_one(int64_t n) { return n < 1 ? 1 : n; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

}  // namespace

Plan::Plan(const AnyRows& source, int64_t M, const PackedWeight& weight, const Epilogue& epilogue, const Limits& limits,
           int threads)
    : source(source), weight(weight), epilogue(epilogue), M(M) {
  const WeightShape& shape = weight.shape;
  row_bytes = shape.taps() * shape.tap_bytes();
  steps = ceil_div(row_bytes, kStepBytes);
  parts = ceil_div(steps, limits.part_steps);
  spare_bits = 8 * shape.tap_bytes() - shape.in_channels;
  pairs = ceil_div(M, 2 * kTileRows);
  tile_rows = ceil_div(M, 2 * pairs);
  whole_rows = shape.groups > 1 && shape.group_outputs() % kPanelOutputs != 0;

  const int64_t panels = shape.panels_per_group(), panel_bytes = most_part_steps() * kTileStep;
  group_blocks = ceil_div(panels, at_least_one(limits.weight_bytes / panel_bytes - 1));
  const int64_t kept_pairs = at_least_one(limits.sum_bytes / kSumBytes / ceil_div(panels, group_blocks));
  ranges = parts == 1 ? 1 : ceil_div(pairs, kept_pairs);
  if (items() % threads != 0 && items() < 8 * static_cast<int64_t>(threads)) {
    const bool by_rows = whole_rows || panels < threads || pairs >= limits.row_pairs * threads;
    if (by_rows)
      ranges = smaller(round_up(ranges, threads), pairs);
    else
      group_blocks = smaller(round_up(group_blocks, threads), panels);
  }
  block_panels = ceil_div(panels, group_blocks);
  group_blocks = ceil_div(panels, block_panels);
  range_pairs = ceil_div(pairs, ranges);
  ranges = ceil_div(pairs, range_pairs);
}

int64_t Plan::most_part_steps() const { return ceil_div(steps, parts); }

}  // namespace amx
}  // namespace stompp
