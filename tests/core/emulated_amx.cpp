#include "emulated_amx.h"

#include "core/amx/product.h"
#include "core/scalar/scalar.h"

namespace stompp::test {
namespace {

struct Emulated {
  using Tiles = EmulatedTiles;
  using Expand = EmulatedExpansion;
  static constexpr amx::Limits kLimits = {128, 40 << 10, 512 << 10, 448 << 10, 1, 2};
};
struct EmulatedSmall : Emulated {
  static constexpr amx::Limits kLimits = {2, 12 << 10, 16 << 10, 24 << 10, 1, 2};
};

template <class Machine>
Implementation on_top_of_scalar(const char* name) {
  Implementation result = scalar::kImplementation;
  result.name = name;
  result.layout = {LayoutId::kLongs, 8};
  result.blocks = {};  // reads another layout
  result.tiles = {1, amx::multiply_on<Machine>};
  return result;
}

}  // namespace

const std::vector<const Implementation*>& emulated_implementations() {
  static const Implementation usual = on_top_of_scalar<Emulated>("amx_emulated");
  static const Implementation small = on_top_of_scalar<EmulatedSmall>("amx_emulated_small");
  static const std::vector<const Implementation*> all = {&usual, &small};
  return all;
}

}  // namespace stompp::test
