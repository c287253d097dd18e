#include "core/isa/amx/plan.h"

#include "core/isa/amx/expand.h"
#include "core/isa/amx/tiles.h"

namespace stompp {
namespace amx {
namespace {

constexpr int64_t kSumBytes = kSumTiles * kTileBytes;

int64_t at_least_one(int64_t n) { return n < 1 ? 1 : n; }
int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Whether a pixel's channels are whole steps, so that what a tap of some pixels beside each other reads is a tile of
// the expanded image. Each pixel is then expanded once, not once for each tap that reads it.
bool can_load_from_image(const BitImage& image, const WeightShape& shape, const Limits& limits) {
  if (image.x == nullptr || shape.taps() == 1 || shape.in_channels % (8 * kStepBytes) != 0) return false;
  if (2 * shape.K() / (8 * kStepBytes) * kTileStep > limits.weight_bytes) return false;
  const int64_t height = image.height + 2 * image.padding_h, width = image.width + 2 * image.padding_w;
  return height <= limits.image_bytes && width <= limits.image_bytes / height / shape.in_channels;
}

// Time of tiles beside those of the most rows: small ones wait for the sums of the step before.
constexpr int64_t kLeastTileRows = 12;
int64_t time_of(int64_t pairs, int64_t tile_rows) {
  return 2 * pairs * (tile_rows < kLeastTileRows ? kLeastTileRows : tile_rows);
}

}  // namespace

Plan::Plan(const AnyRows& source, int64_t M, const PackedWeight& weight, const Epilogue& epilogue, const Limits& limits,
           int threads)
    : source(source), weight(weight), epilogue(epilogue), M(M) {
  const WeightShape& shape = weight.shape;
  row_bytes = shape.taps() * shape.tap_bytes();
  steps = ceil_div(row_bytes, kStepBytes);
  from_image = can_load_from_image(source.image, shape, limits);
  if (from_image) cut_image();
  if (!from_image) cut_rows();
  parts = from_image || 2 * steps <= 3 * limits.part_steps ? 1 : ceil_div(steps, limits.part_steps);
  spare_bits = 8 * shape.tap_bytes() - shape.in_channels;
  whole_rows = shape.groups > 1 && shape.group_outputs() % kPanelOutputs != 0;

  const int64_t panels = shape.panels_per_group(), panel_bytes = most_part_steps() * kTileStep;
  // Sums that are kept want a part of the cache too.
  const int64_t weight_bytes = parts == 1 ? limits.weight_bytes : limits.weight_bytes / 2;
  group_blocks = ceil_div(panels, at_least_one(weight_bytes / panel_bytes));
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

void Plan::cut_rows() {
  line_pitch = image_pairs = 0;
  pairs = ceil_div(M, 2 * kTileRows);
  tile_rows = ceil_div(M, 2 * pairs);
}

// A line is some tiles, or lines follow each other with the padding between them, where a step from pixel to pixel is
// one to the next line too. Where tiles would be half empty either way, rows are gathered instead.
void Plan::cut_image() {
  const BitImage& image = source.image;
  const int64_t line_tiles = ceil_div(image.out_width, kTileRows);
  tile_rows = ceil_div(image.out_width, line_tiles);
  line_pitch = line_tiles * tile_rows;
  image_pairs = ceil_div(image.out_height * line_tiles, 2);
  if (image.stride_h == 1 && image.stride_w == 1) {
    const int64_t rows = (image.out_height - 1) * padded_width() + image.out_width;
    const int64_t through_pairs = ceil_div(rows, 2 * kTileRows), through_rows = ceil_div(rows, 2 * through_pairs);
    if (time_of(through_pairs, through_rows) < time_of(image_pairs, tile_rows)) {
      tile_rows = through_rows;
      line_pitch = padded_width();
      image_pairs = through_pairs;
    }
  }
  pairs = image.batch * image_pairs;
  from_image = time_of(image_pairs, tile_rows) < 2 * image.out_height * image.out_width;
}

int64_t Plan::first_row(int64_t pair) const {
  if (pair >= pairs) return M;
  if (!from_image) return pair * 2 * tile_rows;
  const BitImage& image = source.image;
  const int64_t row = pair % image_pairs * 2 * tile_rows, line = row / line_pitch, ow = row % line_pitch;
  return (pair / image_pairs * image.out_height + line) * image.out_width + smaller(ow, image.out_width);
}

int64_t Plan::most_part_steps() const { return ceil_div(steps, parts); }

}  // namespace amx
}  // namespace stompp
