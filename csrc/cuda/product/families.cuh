// The tile sizes that architectures share.
#pragma once

#include "cuda/product/resident.cuh"
#include "cuda/product/tiles.cuh"

namespace stompp::cuda {

// 128 rows x 256 outputs a block: each row and weight is read least often.
using WideTile = Tile<128, 256, 2, 4, 1, 4>;

// The same for bytes, which take registers too: half the outputs.
using WideByteTile = Tile<128, 128, 2, 4, 1, 4>;

// The same for warp groups, of which a warp has all outputs.
using WarpGroupTile = Tile<128, 256, 8, 1, 1, 4>;

// What one warp group has, of two that share weights.
using ResidentTile = Tile<64, 256, 4, 1, 1, 6>;

// 128 rows x 64 outputs: more blocks, and little waste with few outputs.
using NarrowTile = Tile<128, 64, 4, 1, 1, 4>;

// The same without asynchronous copies, where a second stage is enough.
using OldestTile = Tile<128, 64, 4, 1, 1, 2>;

// 16 rows x 64 outputs, K shared by four warps: the weights are read once, by enough blocks.
using FewTile = Tile<16, 64, 1, 1, 4, 4>;

}  // namespace stompp::cuda
