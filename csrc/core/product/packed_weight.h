// Packed weights: opaque bytes in the order that one layout's kernels read.
//
//   header (64 bytes) | tap sums: int32 [taps][out_channels] | panels
//
// A panel holds kPanelOutputs consecutive outputs of one group, [row_bytes / kr][32 outputs][kr bytes]: a kernel reads
// kr bytes of K for 32 outputs at a time. A row is the bytes of its taps side by side, each tap beginning on a byte.
// Outputs past the group's end are zero bits. The tap sum of (tap, n) is the sum of the tap's weights, C - 2*pop(w):
// what a tap of +1 inputs adds, and so what zero padding takes away.
//
// kTapWords, which the products of floats with binary weights read, has no tap sums: see the layouts below.
//
// Files hold the plain portable order instead, 32-bit words [out_channels][kernel_h][kernel_w][words_for(C)].
#pragma once

#include <cstdint>

#include "core/base/bits.h"
#include "core/base/parallel.h"
#include "core/base/status.h"

namespace stompp {

constexpr int64_t kPanelOutputs = 32;  // one word of output bits

// Logical shape. A matrix [N, K] is a convolution of N outputs, K inputs and one tap.
struct WeightShape {
  int64_t out_channels;
  int64_t in_channels;  // per group
  int64_t kernel_h;
  int64_t kernel_w;
  int64_t groups;

  constexpr int64_t taps() const { return kernel_h * kernel_w; }
  constexpr int64_t K() const { return in_channels * taps(); }
  int64_t tap_bytes() const { return bytes_for(in_channels); }
  // Groups of 1 (depthwise), 2, 4 or 8 channels in and out: a word of channels holds whole groups.
  constexpr bool small_groups() const {
    const bool fits = in_channels == 1 || in_channels == 2 || in_channels == 4 || in_channels == 8;
    return groups > 1 && fits && in_channels == group_outputs();
  }
  constexpr int64_t group_outputs() const { return out_channels / groups; }
  int64_t panels_per_group() const { return ceil_div(group_outputs(), kPanelOutputs); }
};

// Identifies a panel order in a header. The numbers are part of the format.
//   kWords             kr = 4; outputs 0, 1, 2 .. 31
//   kBytes             kr = 1; outputs 0, 1, 2 .. 31
//   kInterleavedBytes  kr = 1; outputs 0, 16, 1, 17 .. 15, 31: as 16-bit words, even and odd bytes are 16 outputs in a
//                      row each
//   kLongs             kr = 8; outputs 0, 1, 2 .. 31
//   kSmallGroups       small groups, in every implementation: no tap sums and no panels, but words of 32 channels; see
//                      small_groups.h
//   kTapWords          kr = 4; outputs 0, 1, 2 .. 31; every tap begins on a word; no tap sums
enum class LayoutId : uint32_t {
  kWords = 1,
  kBytes = 2,
  kInterleavedBytes = 3,
  kLongs = 4,
  kSmallGroups = 5,
  kTapWords = 6
};

struct WeightLayout {
  LayoutId id;
  int64_t k_bytes;  // kr: bytes of K that stand together

  // Bytes of a tap with the zeros between it and the next.
  int64_t tap_bytes(const WeightShape& shape) const {
    return id == LayoutId::kTapWords ? words_for(shape.in_channels) * kWordBytes : shape.tap_bytes();
  }
  // Bytes of a row: those of its taps side by side, then zeros up to a multiple of k_bytes.
  int64_t row_bytes(const WeightShape& shape) const { return round_up(shape.taps() * tap_bytes(shape), k_bytes); }
  int64_t panel_bytes(const WeightShape& shape) const { return row_bytes(shape) * kPanelOutputs; }
};

// What the products of floats with binary weights read, in every implementation.
constexpr WeightLayout kFloatInputLayout = {LayoutId::kTapWords, kWordBytes};

// A checked view of packed bytes.
struct PackedWeight {
  WeightShape shape;
  WeightLayout layout;
  const int32_t* tap_sums;
  const uint8_t* panels;

  const uint8_t* panel(int64_t group, int64_t index) const {
    return panels + (group * shape.panels_per_group() + index) * layout.panel_bytes(shape);
  }
};

// Checks that sizes are positive, that groups divides out_channels, and that dot products and byte counts fit.
Status check_shape(const WeightShape& shape);

// Returns the bytes of `shape` packed in `layout`. `shape` has passed check_shape.
int64_t packed_bytes(const WeightShape& shape, const WeightLayout& layout);

// Returns the layout that a weight of this shape has where `layout` is wanted.
inline WeightLayout layout_for(const WeightShape& shape, const WeightLayout& layout) {
  return shape.small_groups() ? WeightLayout{LayoutId::kSmallGroups, kWordBytes} : layout;
}

// Packs portable words [out_channels][taps][words_for(in_channels)] into packed_bytes() bytes. Tail bits are ignored.
Status pack_weight_words(const uint32_t* words, const WeightShape& shape, const WeightLayout& layout, uint8_t* out,
                         const Parallel& pool);

// Does the inverse, from any layout.
Status unpack_weight_words(const PackedWeight& weight, uint32_t* words, const Parallel& pool);

// Reads and checks a header against the bytes behind it and the shape the caller expects.
Status view_packed(const uint8_t* data, int64_t bytes, const WeightShape& expected, PackedWeight* weight);

}  // namespace stompp
