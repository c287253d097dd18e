// The tile sizes that architectures share.
#pragma once

#include "cuda/product/tiles.cuh"

namespace stompp::cuda {

// 128 rows x 256 outputs a block: each row and weight is read least often.
template <class Mma>
Status launch_wide(const Product& product, Stream stream) {
  return launch_tiles<Mma, Tile<128, 256, 2, 4, 1, 4>>(product, stream);
}

// 128 rows x 64 outputs: more blocks, and little waste with few outputs.
template <class Mma>
Status launch_narrow(const Product& product, Stream stream) {
  return launch_tiles<Mma, Tile<128, 64, 4, 1, 1, 4>>(product, stream);
}

// 16 rows x 64 outputs, K shared by four warps: the weights are read once, by enough blocks.
template <class Mma>
Status launch_few(const Product& product, Stream stream) {
  return launch_tiles<Mma, Tile<16, 64, 1, 1, 4, 4>>(product, stream);
}

}  // namespace stompp::cuda
