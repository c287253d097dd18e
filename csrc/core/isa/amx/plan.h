// How a product is cut for tiles: into ranges of rows and blocks of panels, which threads share, and into parts of K.
#pragma once

#include <cstdint>

#include "core/product/epilogue.h"
#include "core/product/packed_weight.h"
#include "core/product/row_source.h"

namespace stompp {
namespace amx {

// What a thread's expanded bits and sums may take of its caches.
struct Limits {
  int64_t part_steps;    // of K at once, or half as many again: two tiles of rows stay in the first cache
  int64_t weight_bytes;  // expanded panels, in the second cache
  int64_t sum_bytes;     // sums kept between parts of K, there too
  int64_t image_bytes;   // of an expanded image, of which there are two
  int64_t row_pairs;     // that make it worth while for a thread to expand the same weights as another one
};

// A first cache of 48 KB holds 32 rows of a part, expanded, beside what is read once; a second one of 2 MB the rest.
constexpr Limits kProcessorLimits = {16, 1152 << 10, 1024 << 10, 448 << 10, 8};

struct Plan {
  Plan(const AnyRows& source, int64_t M, const PackedWeight& weight, const Epilogue& epilogue, const Limits& limits,
       int threads);

  const AnyRows& source;
  const PackedWeight& weight;
  const Epilogue& epilogue;
  int64_t M;

  int64_t row_bytes;     // of a row's taps, without zeros behind them
  int64_t steps, parts;  // of 64 bits of K, and parts of these
  bool from_image;       // tiles are loaded from an expanded image, else from rows that are gathered and expanded
  int64_t tile_rows;     // of each tile: equal tiles, so that few rows are empty
  int64_t line_pitch;    // with from_image, rows from a line of outputs to the next, of which some may be none
  int64_t image_pairs;   // of tiles
  int64_t pairs;         // of tiles of rows
  int64_t range_pairs, ranges;
  int64_t block_panels, group_blocks;  // a block is some panels of one group
  bool whole_rows;                     // all blocks of a row belong to one thread: groups share words of output bits
  int64_t spare_bits;                  // of a tap's last byte, which add 1 each to every sum

  int64_t blocks() const { return weight.shape.groups * group_blocks; }
  int64_t range_items() const { return whole_rows ? 1 : blocks(); }
  int64_t items() const { return ranges * range_items(); }
  // The first output row of a pair, and behind the last one's the end of all.
  int64_t first_row(int64_t pair) const;
  int64_t part_begin(int64_t part) const { return steps * part / parts; }
  int64_t part_steps(int64_t part) const { return part_begin(part + 1) - part_begin(part); }
  int64_t most_part_steps() const;

  // The size of the expanded image, with its padding.
  int64_t padded_height() const { return source.image.height + 2 * source.image.padding_h; }
  int64_t padded_width() const { return source.image.width + 2 * source.image.padding_w; }
  int64_t line_bytes() const { return padded_width() * weight.shape.in_channels; }
  int64_t image_bytes() const { return from_image ? padded_height() * line_bytes() : 0; }

 private:
  void cut_rows();
  void cut_image();
};

}  // namespace amx
}  // namespace stompp
