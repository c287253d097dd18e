#include "cuda/product/families.cuh"
#include "cuda/product/kernels.h"

namespace stompp::cuda {

Status product_wide_sm80(const Product& product, Stream stream) {
  return launch_tiles<AndMma, WideTile>(product, stream);
}
Status product_narrow_sm80(const Product& product, Stream stream) {
  return launch_tiles<AndMma, NarrowTile>(product, stream);
}
Status product_few_sm80(const Product& product, Stream stream) {
  return launch_tiles<AndMma, FewTile>(product, stream);
}

}  // namespace stompp::cuda
