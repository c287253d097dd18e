// A block of bf16_block.h on tiles: 2 x 2 of sums, or two beside each other where the rows of one tile are enough.
#pragma once

#include "core/float_conv/bf16_block.h"
#include "core/isa/amx/tiles.h"

namespace stompp {
namespace amx {

template <class Tiles>
class Bf16Tiles {
 public:
  static void begin() { Tiles::configure(TileBlock<Tiles>::shapes(kTileRows)); }
  static void end() { Tiles::release(); }

  static void multiply(const Bf16Block& block) { block.is_half() ? run<1>(block) : run<2>(block); }

 private:
  static constexpr int64_t kHalf = kTileRowBytes / static_cast<int64_t>(sizeof(float));  // outputs of a tile of sums
  static constexpr int64_t kWeightStride = kPanelOutputs * 2 * static_cast<int64_t>(sizeof(uint16_t));

  template <int kRowTiles>
  static void load_rows(const uint16_t* x, int64_t stride) {
    const int64_t bytes = stride * static_cast<int64_t>(sizeof(uint16_t));
    Tiles::template load<4>(x, bytes);
    if constexpr (kRowTiles == 2) Tiles::template load<5>(x + kTileRows * stride, bytes);
  }
  static void load_weights(const uint16_t* part) {
    Tiles::template load<6>(part, kWeightStride);
    Tiles::template load<7>(part + 2 * kHalf, kWeightStride);
  }
  template <int kRowTiles>
  static void add_products() {
    Tiles::template add_bf16_products<0, 4, 6>();
    Tiles::template add_bf16_products<1, 4, 7>();
    if constexpr (kRowTiles == 2) {
      Tiles::template add_bf16_products<2, 5, 6>();
      Tiles::template add_bf16_products<3, 5, 7>();
    }
  }

  template <int kRowTiles>
  static void run(const Bf16Block& block) {
    TileBlock<Tiles>::zero();
    const uint16_t *x = block.x, *weights = block.weights;
    for (int64_t step = 0; step < block.steps; ++step, x += kBf16Step) {
      load_rows<kRowTiles>(x, block.stride);
      for (int64_t part = 0; part < block.parts; ++part, weights += kBf16PartWeights) {
        load_weights(weights);
        add_products<kRowTiles>();
      }
    }
    const int64_t bytes = block.sums_stride * static_cast<int64_t>(sizeof(float));
    Tiles::template store<0>(block.sums, bytes);
    Tiles::template store<1>(block.sums + kHalf, bytes);
    if constexpr (kRowTiles == 2) {
      Tiles::template store<2>(block.sums + kTileRows * block.sums_stride, bytes);
      Tiles::template store<3>(block.sums + kTileRows * block.sums_stride + kHalf, bytes);
    }
  }
};

}  // namespace amx
}  // namespace stompp
