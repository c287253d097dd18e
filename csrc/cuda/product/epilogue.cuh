// What the epilogues of tiles and of small groups share; core/product/epilogue.h says what an epilogue is.
#pragma once

#include <cmath>

#include "cuda/product/rows.cuh"

namespace stompp::cuda {

using Kind = Epilogue::Kind;

__device__ inline float load_float(const void* from, FloatType type, int64_t i) {
  if (type == FloatType::kFloat32) return static_cast<const float*>(from)[i];
  const uint16_t bits = static_cast<const uint16_t*>(from)[i];
  return type == FloatType::kFloat16 ? from_half(bits) : from_bfloat16(bits);
}

__device__ inline void store_float(void* to, FloatType type, int64_t i, float value) {
  if (type == FloatType::kFloat32)
    static_cast<float*>(to)[i] = value;
  else
    static_cast<uint16_t*>(to)[i] = type == FloatType::kFloat16 ? to_half(value) : to_bfloat16(value);
}

// Writes the bits of outputs [start, start + count) to a row's words; count is at most 32, and they may lie across two
// words.
__device__ inline void store_bits(const Epilogue& e, uint32_t* words, int start, int count, uint32_t bits) {
  uint32_t* out = words + start / kWordBits;
  const int shift = start % kWordBits;
  if (shift == 0 && (count == kWordBits || start + count == e.N)) {
    *out = bits;
    return;
  }
  // Groups whose outputs are no multiple of 32 share words, which were cleared before.
  or_atomically(out, bits << shift);
  if (shift != 0 && bits >> (kWordBits - shift) != 0) or_atomically(out + 1, bits >> (kWordBits - shift));
}

// Reads what store_bits writes; bits behind the count may be anything.
__device__ inline uint32_t load_bits(const uint32_t* words, int start, int count) {
  const int shift = start % kWordBits;
  const uint32_t first = words[start / kWordBits] >> shift;
  return shift + count <= kWordBits ? first : first | words[start / kWordBits + 1] << (kWordBits - shift);
}

// What an affine epilogue has for one output.
struct AffineColumn {
  float scale, bias, residual_scale, residual_bias;
  float before, slope, after;  // of RPReLU
  float low, high;             // a sign is set below and above: without limits below 0

  __device__ static AffineColumn at(const Epilogue& e, int n) {
    AffineColumn column = {e.scale[n], e.bias[n], 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, INFINITY};
    if (e.residual_scale != nullptr) {
      column.residual_scale = e.residual_scale[n];
      column.residual_bias = e.residual_bias[n];
    }
    if (e.rprelu != nullptr) {
      column.before = e.rprelu[n];
      column.slope = e.rprelu[e.N + n];
      column.after = e.rprelu[2 * e.N + n];
    }
    if (e.limits != nullptr) {
      column.low = e.limits[n];
      column.high = e.limits[e.N + n];
    }
    return column;
  }
};

__device__ inline float multiply_add(bool fused, float x, float scale, float bias) {
  return fused ? fused_multiply_add(x, scale, bias) : multiply_add_rounded(x, scale, bias);
}

__device__ inline float rprelu(float y, float before, float slope, float after) {
  y = add_rounded(y, before);
  return y > 0.0f ? add_rounded(y, after) : multiply_add_rounded(y, slope, after);
}

}  // namespace stompp::cuda
