// An affine epilogue as the kernels that know it take it.
#pragma once

#include <cstdint>

#include "core/base/bits.h"
#include "core/product/epilogue.h"
#include "core/product/kernels.h"

namespace stompp {

// Says whether AffineOut can say what the epilogue is.
inline bool is_affine_of_floats(const Epilogue& e) {
  return e.kind == Epilogue::Kind::kAffine && e.out_type == FloatType::kFloat32 &&
         (e.residual == nullptr || e.residual_type == FloatType::kFloat32);
}

// Says whether output n begins a word of signs, where there are any.
inline bool begins_words(const Epilogue& e, int64_t n) { return e.sign_words == nullptr || n % kWordBits == 0; }

// Returns the outputs from n on of the rows from first_row on, and the words that begin with output n.
inline AffineOut affine_out(const Epilogue& e, const int32_t* const* starts, int64_t first_row, int64_t n) {
  const auto from = [](auto* values, int64_t offset) { return values == nullptr ? nullptr : values + offset; };
  const int64_t at = first_row * e.N + n, words = words_for(e.N);
  return {starts,
          e.fused,
          e.scale + n,
          e.bias + n,
          from(static_cast<const float*>(e.residual), at),
          from(e.residual_scale, n),
          from(e.residual_bias, n),
          {from(e.rprelu, n), from(e.rprelu, e.N + n), from(e.rprelu, 2 * e.N + n)},
          {from(e.limits, n), from(e.limits, e.N + n)},
          from(static_cast<float*>(e.out), at),
          e.N,
          from(e.sign_words, first_row * words + n / kWordBits),
          words};
}

}  // namespace stompp
