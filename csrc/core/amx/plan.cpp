#include "core/amx/plan.h"

#include "core/amx/expand.h"
#include "core/amx/tiles.h"

namespace stompp {
namespace amx {
namespace {

constexpr int64_t kSumBytes = kSumTiles * kTileBytes;

int64_t at_least_one(int64_t n) { return n < 1 ? 1 : n; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Whether a pixel's channels are whole steps, so that what a tap of some pixels beside each other reads is a tile of
// the expanded image. Each pixel is then expanded once, not once for each tap that reads it.
bool loads_from_image(const BitImage& image, const WeightShape& shape, const Limits& limits) {
  if (image.x == nullptr || shape.taps() == 1 || shape.in_channels % (8 * kStepBytes) != 0) return false;
  if (image.out_width < limits.line_pixels) return false;
  const int64_t height = image.height + 2 * image.padding_h, width = image.width + 2 * image.padding_w;
  return height <= limits.image_bytes && width <= limits.image_bytes / height / shape.in_channels;
}

}  // namespace

Plan::Plan(const AnyRows& source, int64_t M, const PackedWeight& weight, const Epilogue& epilogue, const Limits& limits,
           int threads)
    : source(source), weight(weight), epilogue(epilogue), M(M) {
  const WeightShape& shape = weight.shape;
  row_bytes = shape.taps() * shape.tap_bytes();
  steps = ceil_div(row_bytes, kStepBytes);
  parts = ceil_div(steps, limits.part_steps);
  spare_bits = 8 * shape.tap_bytes() - shape.in_channels;
  from_image = parts == 1 && loads_from_image(source.image, shape, limits);
  if (from_image) {
    line_tiles = ceil_div(source.image.out_width, kTileRows);
    tile_rows = ceil_div(source.image.out_width, line_tiles);
    image_pairs = ceil_div(source.image.out_height * line_tiles, 2);
    pairs = source.image.batch * image_pairs;
  } else {
    line_tiles = image_pairs = 0;
    pairs = ceil_div(M, 2 * kTileRows);
    tile_rows = ceil_div(M, 2 * pairs);
  }
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

int64_t Plan::first_row(int64_t pair) const {
  if (pair >= pairs) return M;
  if (!from_image) return pair * 2 * tile_rows;
  const int64_t tile = pair % image_pairs * 2, line = pair / image_pairs * source.image.out_height + tile / line_tiles;
  return line * source.image.out_width + tile % line_tiles * tile_rows;
}

int64_t Plan::most_part_steps() const { return ceil_div(steps, parts); }

}  // namespace amx
}  // namespace stompp
