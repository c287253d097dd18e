#include "cuda/product/families.cuh"
#include "cuda/product/kernels.h"

namespace stompp::cuda {

template <class Mma, class T, bool kPlain>
__global__ void __launch_bounds__(T::kThreads) __cluster_dims__(Mma::kBlocks, 1, 1)
    cluster_kernel(const Product product) {
  TileKernel<Mma, T, kPlain>(product).run();
}

template <class Mma, class T, bool kPlain>
Status launch_clusters(const Product& product, Stream stream) {
  constexpr int kBytes = TileKernel<Mma, T, kPlain>::kSharedBytes;
  constexpr auto kKernel = cluster_kernel<Mma, T, kPlain>;
  return launch<kKernel, kBytes, Mma::kBlocks>(tile_grid<Mma, T>(product), T::kThreads, stream, product);
}

Status product_wide_sm90a(const Product& product, Stream stream) {
  return launch_tiles<WarpGroupMma, WarpGroupTile>(product, stream);
}

Status product_pair_sm90a(const Product& product, Stream stream) {
  return is_plain(product) ? launch_clusters<WarpGroupPairMma, WarpGroupTile, true>(product, stream)
                           : launch_clusters<WarpGroupPairMma, WarpGroupTile, false>(product, stream);
}

bool runs_pairs_sm90a() {
  using Mma = WarpGroupPairMma;
  using T = WarpGroupTile;
  constexpr auto kKernel = cluster_kernel<Mma, T, false>;
  return runs_clusters<kKernel, TileKernel<Mma, T, false>::kSharedBytes, Mma::kBlocks>(T::kThreads);
}

Status product_resident_sm90a(const Product& product, Stream stream) {
  if (product.rows.k_blocks > kResidentBlocks) return product_wide_sm90a(product, stream);
  return launch_resident<ResidentTile, kResidentBlocks>(product, stream);
}

}  // namespace stompp::cuda
