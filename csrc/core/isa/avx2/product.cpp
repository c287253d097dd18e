#include "core/isa/avx2/vectors.h"

#if defined(__x86_64__)

#define STOMPP_TARGET STOMPP_AVX2

namespace stompp {
namespace avx2 {
namespace {

#include "core/product/affine_body.h"

constexpr ProductKernels product_kernels() {
  ProductKernels kernels = {};
  kernels.layout = {LayoutId::kInterleavedBytes, 1};
  kernels.blocks.scratch_bytes = block_scratch_bytes;
  kernels.blocks.prepare_rows = prepare_block;
  kernels.blocks.multiply = multiply_block;
  kernels.blocks.compare = compare_block;
  kernels.blocks.scale = scale_block;
  kernels.few_rows.scratch_bytes = few_rows_scratch_bytes;
  kernels.few_rows.prepare_rows = prepare_few_rows;
  kernels.few_rows.multiply = multiply_few_rows;
  kernels.few_rows.compare = compare_few_rows;
  kernels.few_rows.scale = scale_few_rows;
  kernels.one_row.scratch_bytes = one_row_scratch_bytes;
  kernels.one_row.prepare_rows = prepare_one_row;
  kernels.one_row.multiply = multiply_one_row;
  kernels.one_row.compare = compare_one_row;
  kernels.less_than = less_than;
  kernels.affine = affine;
  return kernels;
}

}  // namespace

STOMPP_AVX2 void less_than(const int32_t* acc, int64_t stride, int64_t rows, const int32_t* thresholds,
                           uint32_t* bits) {
  __m256i limit[4], less[4];
  for (int i = 0; i < 4; ++i) limit[i] = load(thresholds + 8 * i);
  // Packing works within 128-bit lanes and leaves the fours of comparisons in the order 0 2 4 6 1 3 5 7.
  const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  for (int64_t r = 0; r < rows; ++r, acc += stride) {
    for (int i = 0; i < 4; ++i) less[i] = _mm256_cmpgt_epi32(limit[i], load(acc + 8 * i));
    const __m256i words0 = _mm256_packs_epi32(less[0], less[1]), words1 = _mm256_packs_epi32(less[2], less[3]);
    const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(words0, words1), in_order);
    bits[r] = static_cast<uint32_t>(_mm256_movemask_epi8(bytes));
  }
}

constexpr ProductKernels kProductKernels = product_kernels();

}  // namespace avx2
}  // namespace stompp

#endif
