// Which kernel runs a product: a pure function of the architecture and the shape. The library is compiled with
// STOMPP_SM<N> for each family of kernels that it holds, see kernels.h.
#pragma once

#include "cuda/device.h"
#include "cuda/product/kernels.h"

namespace stompp::cuda {

using ProductKernel = Status (*)(const Product&, Stream);

enum class TileSize { kFew, kNarrow, kWide };

// Up to 16 rows read every weight once, and warps that share K keep enough reads under way; so they do for more
// rows where narrow tiles would leave half of the GPU idle. Wide tiles read each row and weight least often; they pay
// once they fill the GPU and waste few outputs.
inline TileSize choose_tile(const Product& p, const Device& device) {
  const int64_t groups = p.groups(), row_tiles = ceil_div(p.rows.count, 128);
  const int64_t narrow = row_tiles * p.panels_per_group * groups;
  const int64_t wide = row_tiles * ceil_div(p.group_outputs, 256) * groups;
  if (p.rows.count <= 16 || (2 * narrow <= device.multiprocessors && p.rows.k_blocks >= 8)) return TileSize::kFew;
  const bool wastes_little = p.group_outputs % 256 == 0 || p.group_outputs > 1024;
  return wide >= device.multiprocessors && wastes_little ? TileSize::kWide : TileSize::kNarrow;
}

// Null where the library holds no kernel for the device.
inline ProductKernel choose_product(const Product& p, const Device& device) {
  const TileSize tile = choose_tile(p, device);
  (void)tile;
#ifdef STOMPP_SM100
  if (device.capability >= 100)
    return tile == TileSize::kFew      ? product_few_sm100
           : tile == TileSize::kNarrow ? product_narrow_sm100
                                       : product_wide_sm100;
#endif
#ifdef STOMPP_SM90A
  if (device.capability == 90 && tile == TileSize::kWide) return product_wide_sm90a;
#endif
#ifdef STOMPP_SM80
  if (device.capability >= 80 && device.capability < 100)
    return tile == TileSize::kFew      ? product_few_sm80
           : tile == TileSize::kNarrow ? product_narrow_sm80
                                       : product_wide_sm80;
#endif
#ifdef STOMPP_SM75
  if (device.capability >= 75 && device.capability < 80) return product_sm75;
#endif
  return nullptr;
}

inline Status run_product(const Product& product, const Device& device, Stream stream) {
  const ProductKernel kernel = choose_product(product, device);
  if (kernel == nullptr) return Status::error("the library was compiled without kernels for this GPU");
  return kernel(product, stream);
}

}  // namespace stompp::cuda
