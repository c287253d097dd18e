#include "cuda/product/kernels.h"
#include "cuda/product/tiles.cuh"

namespace stompp::cuda {

// No asynchronous copies there, so a second stage is enough.
Status product_sm75(const Product& product, Stream stream) {
  return launch_tiles<XorMma, Tile<128, 64, 4, 1, 1, 2>>(product, stream);
}

}  // namespace stompp::cuda
