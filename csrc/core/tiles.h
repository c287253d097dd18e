// The product that bgemm and bconv2d share: output rows given as byte pointers, one per tap, against a packed weight.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <new>

#include "core/epilogue.h"
#include "core/implementation.h"
#include "core/packed_weight.h"
#include "core/parallel.h"
#include "core/status.h"

namespace stompp {

// Rows that one pass over a weight panel serves, so that the panel is read from L1 after the first of them.
constexpr int64_t kBlockRows = 32;
static_assert(kBlockRows % kTileRows == 0, "a block is whole tiles");

namespace detail {

inline Tile tile_of(const PackedWeight& weight, int64_t group, int64_t panel, int64_t group_row_bytes) {
  const int64_t panels = weight.shape.panels_per_group();
  Tile tile = {};
  tile.row_offset = group * group_row_bytes;
  tile.taps = weight.shape.taps();
  tile.tap_bytes = weight.layout.tap_bytes(weight.shape);
  tile.panel_count = panels - panel < kTilePanels ? panels - panel : kTilePanels;
  for (int64_t i = 0; i < tile.panel_count; ++i) tile.panels[i] = weight.panel(group, panel + i);
  return tile;
}

}  // namespace detail

// Computes dot(row m, weight n) = K - 2*pop(row ^ weight) for m < M and all n, and finishes it with `epilogue`.
//
// RowSource says where a row's bits lie:
//   void gather(int64_t m, const uint8_t** pointers, int64_t stride) const   pointers[tap * stride] for every tap
//   const uint8_t* zero_row() const   the pointer that stands for a tap of zero padding, or nullptr: such a tap reads
//                                     as +1 here, and its tap sum is then taken away again, so that it adds nothing
//   int64_t group_row_bytes() const   bytes from one group's slice of a row to the next
template <class RowSource>
Status multiply(const Implementation& implementation, const RowSource& source, int64_t M, const PackedWeight& weight,
                const Epilogue& epilogue, const Parallel& pool) {
  const WeightShape& shape = weight.shape;
  const int64_t taps = shape.taps(), group_outputs = shape.group_outputs();
  const int32_t K = static_cast<int32_t>(shape.K());
  const int64_t panel_pairs = ceil_div(shape.panels_per_group(), kTilePanels) * shape.groups;
  const int64_t row_blocks = ceil_div(M, kBlockRows);

  // With few rows the panels are shared out as well. Panels of unaligned groups share words of output bits, so then
  // only rows are: whoever owns a row owns its words.
  const bool aligned = shape.groups == 1 || group_outputs % kPanelOutputs == 0;
  const int64_t wanted = 4 * static_cast<int64_t>(pool.threads);
  int64_t splits = !aligned || row_blocks >= wanted ? 1 : ceil_div(wanted, row_blocks < 1 ? 1 : row_blocks);
  if (splits > panel_pairs) splits = panel_pairs;

  std::atomic<bool> out_of_memory{false};
  parallel_for(pool, row_blocks * splits, 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<const uint8_t*[]> pointers(new (std::nothrow) const uint8_t*[kBlockRows * taps]);
    if (pointers == nullptr) {
      out_of_memory = true;
      return;
    }
    int32_t acc[kTileRows * kTilePanels * kPanelOutputs];

    for (int64_t item = begin; item < end; ++item) {
      const int64_t first_row = item / splits * kBlockRows, split = item % splits;
      const int64_t rows = M - first_row < kBlockRows ? M - first_row : kBlockRows;
      for (int64_t r = 0; r < round_up(rows, kTileRows); ++r) {
        // Rows past the end repeat the last one: a tile always has kTileRows rows that may be read.
        const int64_t m = first_row + (r < rows ? r : rows - 1);
        source.gather(m, pointers.get() + r / kTileRows * kTileRows * taps + r % kTileRows, kTileRows);
      }

      const int64_t pair_begin = split * panel_pairs / splits, pair_end = (split + 1) * panel_pairs / splits;
      for (int64_t pair = pair_begin; pair < pair_end; ++pair) {
        const int64_t pairs_per_group = panel_pairs / shape.groups;
        const int64_t group = pair / pairs_per_group, panel = pair % pairs_per_group * kTilePanels;
        Tile tile = detail::tile_of(weight, group, panel, source.group_row_bytes());
        tile.pops = acc;
        for (int64_t r = 0; r < rows; r += kTileRows) {
          tile.rows = pointers.get() + r * taps;
          tile.row_count = rows - r < kTileRows ? rows - r : kTileRows;
          implementation.xor_popcount(tile);

          for (int64_t i = 0; i < tile.row_count; ++i)
            for (int64_t p = 0; p < tile.panel_count; ++p) {
              const int64_t in_group = (panel + p) * kPanelOutputs, n = group * group_outputs + in_group;
              const int64_t left = group_outputs - in_group;
              const int64_t count = left < kPanelOutputs ? left : kPanelOutputs;
              int32_t* dots = acc + (i * kTilePanels + p) * kPanelOutputs;
              for (int64_t j = 0; j < count; ++j) dots[j] = K - 2 * dots[j];
              if (source.zero_row() != nullptr)
                for (int64_t tap = 0; tap < taps; ++tap)
                  if (tile.rows[tap * kTileRows + i] == source.zero_row()) {
                    const int32_t* sums = weight.tap_sums + tap * shape.out_channels + n;
                    for (int64_t j = 0; j < count; ++j) dots[j] -= sums[j];
                  }
              finish(epilogue, implementation, first_row + r + i, n, count, dots);
            }
        }
      }
    }
  });
  return out_of_memory ? Status::error("out of memory") : Status::ok();
}

// Weights packed for another layout than `implementation` reads are packed again into `storage`: right, but slow, and
// only met where an implementation is forced after packing.
Status in_layout_of(const Implementation& implementation, const PackedWeight& weight,
                    std::unique_ptr<uint8_t[]>* storage, PackedWeight* result, const Parallel& pool);

}  // namespace stompp
