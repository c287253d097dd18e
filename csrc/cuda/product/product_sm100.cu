#include "cuda/product/families.cuh"
#include "cuda/product/kernels.h"

namespace stompp::cuda {

// The bytes take registers too: half the outputs.
Status product_wide_sm100(const Product& product, Stream stream) {
  return launch_tiles<ByteMma, Tile<128, 128, 2, 4, 1, 4>>(product, stream);
}

Status product_narrow_sm100(const Product& product, Stream stream) { return launch_narrow<ByteMma>(product, stream); }
Status product_few_sm100(const Product& product, Stream stream) { return launch_few<ByteMma>(product, stream); }

}  // namespace stompp::cuda
