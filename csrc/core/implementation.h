// What an instruction set provides. Each one is a folder that defines one Implementation; everything else in the core
// is written once on top of these primitives. To add one: write the folder, list it in dispatch.cpp.
#pragma once

#include <cstdint>

#include "core/float_types.h"
#include "core/pack.h"
#include "core/packed_weight.h"
#include "core/progressive.h"

namespace stompp {

constexpr int64_t kTileRows = 4;
constexpr int64_t kTilePanels = 2;

// Up to kTileRows rows against up to kTilePanels panels of one packed weight.
struct Tile {
  const uint8_t* const* rows;  // [taps][kTileRows]: where each tap's bits of each row begin; all valid to read
  int64_t row_offset;          // bytes added to every pointer: a group's slice of the channels
  int64_t row_count;           // rows that are wanted, 1 .. kTileRows; results of the others are not read
  int64_t taps;
  int64_t tap_bytes;  // a multiple of the layout's k_bytes
  const uint8_t* panels[kTilePanels];
  int64_t panel_count;
  int32_t* pops;  // out: pop(row ^ weight), [kTileRows][kTilePanels * kPanelOutputs]
};

struct Implementation {
  const char* name;
  const char* description;
  bool (*supported)();  // the processor and the operating system have what it needs
  WeightLayout layout;  // the panel order that xor_popcount reads

  void (*xor_popcount)(const Tile& tile);

  // The sign bits of K consecutive elements, as words_for(K) words with a zero tail.
  void (*pack_row)(const void* x, FloatType type, int64_t K, uint32_t* words);

  // The same for pixels [begin, end) of an image whose channels are planes; see pack.h.
  void (*pack_planes)(const Planes& planes, int64_t begin, int64_t end);

  // The inverse: +1 or -1 for each of K bits.
  void (*unpack_row)(const uint32_t* words, FloatType type, int64_t K, void* out);

  // Bit i = acc[i] < threshold[i] for i < count <= 32. Higher bits are unspecified.
  uint32_t (*less_than)(const int32_t* acc, const int32_t* threshold, int64_t count);

  // `count` elements of one row of a mask; see progressive.h.
  void (*progressive_forward)(const ProgressiveRow& row);
  void (*progressive_backward)(const ProgressiveRow& row);

  // Words [begin, end) of a mask of n entries; see refresh_mask.h.
  void (*refresh_words)(const struct RefreshMask& refresh, uint32_t* words, int64_t begin, int64_t end);
};

}  // namespace stompp
