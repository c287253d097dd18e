#include "cuda/product/kernels.h"
#include "cuda/product/tiles.cuh"

namespace stompp::cuda {

Status product_wide_sm90a(const Product& product, Stream stream) {
  return launch_tiles<WarpGroupMma, Tile<128, 256, 8, 1, 1, 4>>(product, stream);
}

}  // namespace stompp::cuda
