#include "core/isa/wasm/lanes.h"

#if defined(__wasm_simd128__)

#define STOMPP_TARGET

namespace stompp {
namespace wasm {
namespace {

#include "core/product/affine_body.h"

void less_than(const int32_t* acc, int64_t stride, int64_t rows, const int32_t* thresholds, uint32_t* bits) {
  for (int64_t r = 0; r < rows; ++r, acc += stride)
    bits[r] = word_of([&](int i) { return wasm_i32x4_lt(wasm_v128_load(acc + i), wasm_v128_load(thresholds + i)); });
}

constexpr ProductKernels product_kernels() {
  ProductKernels kernels = {};
  kernels.layout = {LayoutId::kBytes, 1};
  kernels.blocks.scratch_bytes = whole_rows_bytes;
  kernels.blocks.prepare_rows = prepare_whole_rows;
  kernels.blocks.multiply = multiply_block;
  kernels.less_than = less_than;
  kernels.affine = affine;
  return kernels;
}

}  // namespace

constexpr ProductKernels kProductKernels = product_kernels();

}  // namespace wasm
}  // namespace stompp

#endif
