// How a convolution of floats with binary weights is cut into tasks: pure functions of sizes.
//
// A task is some lines of a strip of output pixels, with some panels of one block of channels. It prepares the lines of
// input that its strip reads, and keeps those that its next line reads too.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/binary_weight/signed_sum.h"
#include "core/product/bconv2d.h"
#include "core/product/packed_weight.h"

namespace stompp {

// These many bytes of a strip are prepared at once. Lines that several output lines read should stay in a core's second
// cache beside the weights; pixels that are read by one output pixel only, in its first.
constexpr int64_t kKeptBytes = 512 * 1024;
constexpr int64_t kPassingBytes = 16 * 1024;
// Pixels of small groups whose sums are kept at once.
constexpr int64_t kChannelRows = 16;

// The channels of a group are summed together. Small groups are one block, whose panels are words of channels.
struct ChannelBlocks {
  int64_t count, inputs, outputs;  // inputs and outputs of a block
  int64_t panels;                  // of a block
  int64_t turns;                   // of small groups; else 1

  explicit ChannelBlocks(const WeightShape& w) {
    const bool small = w.small_groups();
    count = small ? 1 : w.groups;
    inputs = w.in_channels * w.groups / count;
    outputs = w.out_channels / count;
    panels = ceil_div(outputs, kPanelOutputs);
    turns = small ? w.in_channels : 1;
  }
};

struct FloatConvGrid {
  int64_t rows;          // most output pixels that are added up at once
  int64_t pixel_floats;  // prepared floats of a pixel of a block
  int64_t kept_lines;    // of input
  int64_t strip_width, strips;
  int64_t line_count, line_chunks;    // output lines of a task, and tasks below each other
  int64_t panel_count, panel_chunks;  // panels of a task, and tasks beside each other

  FloatConvGrid(const Conv2dShape& shape, const WeightShape& w, const SignedSumKernel& kernel, int threads) {
    const ChannelBlocks blocks(w);
    const int64_t height = shape.out_height(w), width = shape.out_width(w);
    rows = w.small_groups() ? kChannelRows : kernel.rows;
    pixel_floats = words_for(blocks.inputs) * (w.small_groups() ? kWordBits * blocks.turns : kernel.word_floats);
    kept_lines = std::min((w.kernel_h - 1) * shape.dilation_h + 1, shape.height);

    const int64_t bytes = w.taps() == 1 ? kPassingBytes : kKeptBytes;
    const int64_t pixels = bytes / (kept_lines * pixel_floats * static_cast<int64_t>(sizeof(float)));
    const int64_t reach = (w.kernel_w - 1) * shape.dilation_w;
    const int64_t fits = pixels > reach ? (pixels - reach - 1) / shape.stride_w + 1 : 1;
    strips = ceil_div(width, std::max(fits, rows));
    // A single line of rows, which is a matrix, is shared by the threads evenly.
    if (strips > 1 && height == 1) strips = std::min(round_up(strips, threads), ceil_div(width, rows));
    strip_width = ceil_div(width, strips);
    strips = ceil_div(width, strip_width);

    const int64_t units = std::max<int64_t>(shape.batch * blocks.count * strips, 1);
    const int64_t wanted = units % threads == 0 ? 1 : ceil_div(threads, units);
    // Panels cost the other threads the preparation of the same lines, lines only that of the first ones.
    const bool by_panels = height < 8 * wanted && !w.small_groups();
    panel_count = by_panels ? ceil_div(blocks.panels, std::min(wanted, blocks.panels)) : blocks.panels;
    panel_chunks = ceil_div(blocks.panels, panel_count);
    line_count = ceil_div(height, std::min(ceil_div(wanted, panel_chunks), height));
    line_chunks = ceil_div(height, line_count);
  }
};

}  // namespace stompp
