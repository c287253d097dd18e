#include "core/isa/avx512/affine_row.h"
#include "core/isa/avx512/avx512.h"
#include "core/product/affine_out.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define STOMPP_TARGET STOMPP_AVX512

namespace stompp {
namespace avx512 {
namespace {

#include "core/product/affine_body.h"

STOMPP_AVX512 void less_than(const int32_t* acc, int64_t stride, int64_t rows, const int32_t* thresholds,
                             uint32_t* bits) {
  const __m512i low = _mm512_loadu_si512(thresholds), high = _mm512_loadu_si512(thresholds + 16);
  for (int64_t r = 0; r < rows; ++r, acc += stride) {
    const uint32_t first = _mm512_cmplt_epi32_mask(_mm512_loadu_si512(acc), low);
    const uint32_t second = _mm512_cmplt_epi32_mask(_mm512_loadu_si512(acc + 16), high);
    bits[r] = first | second << 16;
  }
}

// Whole panels of floats; everything else is the body's.
STOMPP_AVX512 void affine_of_panels(const Epilogue& e, const Dots& dots) {
  const bool fits = is_affine_of_floats(e) && begins_words(e, dots.n);
  const int64_t whole = fits ? dots.count / kPanelOutputs * kPanelOutputs : 0;
  for (int64_t i = 0; i < whole; i += kPanelOutputs) {
    const AffineOut out = affine_out(e, nullptr, dots.first_row, dots.n + i);
    const int32_t* sums = dots.values + i;
    for (int64_t r = 0; r < dots.rows; ++r, sums += dots.stride)
      AffineRow{out}.finish(r, 0, _mm512_loadu_si512(sums), _mm512_loadu_si512(sums + kHalf));
  }
  const int64_t rest = dots.count - whole;
  if (rest != 0) affine(e, {dots.first_row, dots.rows, dots.n + whole, rest, dots.values + whole, dots.stride});
}

constexpr ProductKernels product_kernels() {
  ProductKernels kernels = {};
  kernels.layout = {LayoutId::kLongs, 8};
  kernels.blocks.scratch_bytes = whole_rows_bytes;
  kernels.blocks.prepare_rows = prepare_rows;
  kernels.blocks.multiply = multiply_block;
  kernels.blocks.compare = compare_block;
  kernels.blocks.scale = scale_block;
  kernels.blocks.skipped_run_bytes = kStepBytes;
  kernels.less_than = less_than;
  kernels.affine = affine_of_panels;
  return kernels;
}

}  // namespace

constexpr ProductKernels kProductKernels = product_kernels();

}  // namespace avx512
}  // namespace stompp

#endif
