#include "cuda/product/families.cuh"
#include "cuda/product/kernels.h"

namespace stompp::cuda {

Status product_wide_sm100(const Product& product, Stream stream) {
  return launch_tiles<ByteMma, WideByteTile>(product, stream);
}
Status product_narrow_sm100(const Product& product, Stream stream) {
  return launch_tiles<ByteMma, NarrowTile>(product, stream);
}
Status product_few_sm100(const Product& product, Stream stream) {
  return launch_tiles<ByteMma, FewTile>(product, stream);
}

}  // namespace stompp::cuda
