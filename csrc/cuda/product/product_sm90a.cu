#include "cuda/product/families.cuh"
#include "cuda/product/kernels.h"

namespace stompp::cuda {

Status product_wide_sm90a(const Product& product, Stream stream) {
  return launch_tiles<WarpGroupMma, WarpGroupTile>(product, stream);
}

}  // namespace stompp::cuda
