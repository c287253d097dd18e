// The kernels of the product, by the architecture whose instructions they use. A file is compiled for the architectures
// from the one in its name to before the next one's: _sm75 7.5, _sm80 8.0 to 9.0, _sm90a 9.0a alone, _sm100 10.0 on.
#pragma once

#include "cuda/product/product.h"

namespace stompp::cuda {

Status product_sm75(const Product& product, Stream stream);  // XOR on m8n8k128

Status product_wide_sm80(const Product& product, Stream stream);  // AND on m16n8k256
Status product_narrow_sm80(const Product& product, Stream stream);
Status product_few_sm80(const Product& product, Stream stream);

Status product_wide_sm90a(const Product& product, Stream stream);  // AND on wgmma

// The same in clusters of two blocks that share their weights, on a device that runs them.
Status product_pair_sm90a(const Product& product, Stream stream);
bool runs_pairs_sm90a();

// The same with weights that stay in shared memory; product_wide_sm90a where K has more blocks than there is room for.
constexpr int kResidentBlocks = 9;
Status product_resident_sm90a(const Product& product, Stream stream);

Status product_wide_sm100(const Product& product, Stream stream);  // bytes on m16n8k32
Status product_narrow_sm100(const Product& product, Stream stream);
Status product_few_sm100(const Product& product, Stream stream);

}  // namespace stompp::cuda
