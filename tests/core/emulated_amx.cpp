#include "emulated_amx.h"

#include "core/isa/amx/amx.h"
#include "core/isa/amx/bf16_tiles.h"
#include "core/isa/amx/product.h"
#include "core/isa/scalar/scalar.h"

namespace stompp::test {
namespace {

struct Emulated {
  using Tiles = EmulatedTiles;
  using Expand = EmulatedExpansion;
  static constexpr amx::Limits kLimits = {128, 80 << 10, 512 << 10, 448 << 10, 2};
};
struct EmulatedSmall : Emulated {
  static constexpr amx::Limits kLimits = {2, 12 << 10, 16 << 10, 24 << 10, 2};
};

template <class Machine>
ProductKernels on_top_of_scalar() {
  ProductKernels kernels = scalar::kProductKernels;
  kernels.layout = {LayoutId::kLongs, 8};
  kernels.blocks = {};  // reads another layout
  kernels.tiles.bounds = {1, 1, 1, 1, 1};
  kernels.tiles.multiply = amx::multiply_on<Machine>;
  return kernels;
}

FloatConvKernels bf16_on_top_of_scalar() {
  FloatConvKernels kernels = *scalar::kImplementation.float_conv;
  using Bf16 = amx::Bf16Tiles<EmulatedTiles>;
  kernels.bf16.multiply = Bf16::multiply;
  kernels.bf16.begin = Bf16::begin;
  kernels.bf16.end = Bf16::end;
  return kernels;
}

template <class Machine>
Implementation on_top_of_scalar(const char* name) {
  static const ProductKernels kernels = on_top_of_scalar<Machine>();
  static const FloatConvKernels float_conv = bf16_on_top_of_scalar();
  Implementation result = scalar::kImplementation;
  result.name = name;
  result.product = &kernels;
  result.float_conv = &float_conv;
  return result;
}

#if STOMPP_HAS_AMX
// Runs the smallest products on tiles too.
Implementation amx_everywhere() {
  static const ProductKernels kernels = [] {
    ProductKernels table = *amx::kImplementation.product;
    table.tiles.bounds = {1, 1, 1, 1, 1};
    return table;
  }();
  Implementation result = amx::kImplementation;
  result.name = "amx_everywhere";
  result.product = &kernels;
  return result;
}
#endif

}  // namespace

const std::vector<const Implementation*>& tile_implementations() {
  static const Implementation usual = on_top_of_scalar<Emulated>("amx_emulated");
  static const Implementation small = on_top_of_scalar<EmulatedSmall>("amx_emulated_small");
#if STOMPP_HAS_AMX
  static const Implementation everywhere = amx_everywhere();
  static const std::vector<const Implementation*> all = {&everywhere, &usual, &small};
#else
  static const std::vector<const Implementation*> all = {&usual, &small};
#endif
  return all;
}

}  // namespace stompp::test
