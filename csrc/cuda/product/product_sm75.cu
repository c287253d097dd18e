#include "cuda/product/families.cuh"
#include "cuda/product/kernels.h"

namespace stompp::cuda {

Status product_sm75(const Product& product, Stream stream) { return launch_tiles<XorMma, OldestTile>(product, stream); }

}  // namespace stompp::cuda
