// A family's kernels with matrices and plain thresholds alone, so that a reader of their machine code finds a main loop
// and, behind it, this epilogue. test_cuda_kernels.py compiles it with -DSTOMPP_MMA=AndMma -DSTOMPP_TILE=WideTile.
#include "cuda/product/families.cuh"

namespace stompp::cuda {

template <class Mma, class T>
__global__ void __launch_bounds__(T::kThreads) thresholds(const Product product) {
  Product p = product;
  p.rows.is_matrix = true;
  p.epilogue.kind = Kind::kThreshold;
  p.epilogue.residual_words = nullptr;
  TileKernel<Mma, T, true>(p).run();
}

template __global__ void thresholds<STOMPP_MMA, STOMPP_TILE>(const Product product);

}  // namespace stompp::cuda
