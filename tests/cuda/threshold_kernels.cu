// A family's kernel with matrices and plain thresholds alone, so that a reader of its machine code finds a main loop
// and, behind it, this epilogue. test_cuda_kernels.py compiles it with -DSTOMPP_KERNEL=And.
#include "cuda/product/families.cuh"
#include "cuda/product/kernels.h"

namespace stompp::cuda {

using Xor = TileKernel<XorMma, OldestTile, true>;
using And = TileKernel<AndMma, WideTile, true>;
using WarpGroup = TileKernel<WarpGroupMma, WarpGroupTile, true>;
using WarpGroupPair = TileKernel<WarpGroupPairMma, WarpGroupTile, true>;
using Resident = ResidentKernel<ResidentTile, kResidentBlocks, true>;
using Bytes = TileKernel<ByteMma, WideByteTile, true>;

template <class Kernel>
__global__ void __launch_bounds__(Kernel::kThreads) thresholds(const Product product) {
  Product p = product;
  p.rows.is_matrix = true;
  p.epilogue.kind = Kind::kThreshold;
  p.epilogue.residual_words = nullptr;
  Kernel(p).run();
}

template __global__ void thresholds<STOMPP_KERNEL>(const Product product);

}  // namespace stompp::cuda
