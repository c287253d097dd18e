#include "cuda/product/families.cuh"
#include "cuda/product/kernels.h"

namespace stompp::cuda {

Status product_wide_sm80(const Product& product, Stream stream) { return launch_wide<AndMma>(product, stream); }
Status product_narrow_sm80(const Product& product, Stream stream) { return launch_narrow<AndMma>(product, stream); }
Status product_few_sm80(const Product& product, Stream stream) { return launch_few<AndMma>(product, stream); }

}  // namespace stompp::cuda
