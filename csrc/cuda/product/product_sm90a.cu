#include "cuda/product/families.cuh"
#include "cuda/product/kernels.h"

namespace stompp::cuda {

Status product_wide_sm90a(const Product& product, Stream stream) {
  return launch_tiles<WarpGroupMma, WarpGroupTile>(product, stream);
}

Status product_resident_sm90a(const Product& product, Stream stream) {
  if (product.rows.k_blocks > kResidentBlocks) return product_wide_sm90a(product, stream);
  return launch_resident<ResidentTile, kResidentBlocks>(product, stream);
}

}  // namespace stompp::cuda
