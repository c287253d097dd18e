// Accumulators of a warp to what the epilogue writes; core/product/epilogue.h says what that is.
#pragma once

#include "cuda/product/rows.cuh"

namespace stompp::cuda {

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

// What a warp must know of 32 rows at most: lane i of row i.
struct BorderRows {
  uint32_t rows;    // bit i: some taps of row i lie outside
  uint32_t inside;  // the rectangle of the others, a byte each: y0, y1, x0, x1

  __device__ static BorderRows of(const Rows& rows, int first_row, int lane) {
    if (rows.is_matrix || rows.outside == 0) return {0, 0};
    const TapRectangle t = Row::at(rows, first_row + lane).inside(rows);
    const bool border = t.y0 > 0 || t.y1 < rows.kernel_h || t.x0 > 0 || t.x1 < rows.kernel_w;
    return {ballot(border), static_cast<uint32_t>(t.y0 | t.y1 << 8 | t.x0 << 16 | t.x1 << 24)};
  }
};

// What the epilogue has for one output, the same for all rows that a lane finishes.
struct OutputColumn {
  bool exists;
  int n;
  int thresholds[2];
  uint32_t flip;
  float scale, bias, residual_scale, residual_bias;
  float before, slope, after;  // of RPReLU

  __device__ static OutputColumn at(const Epilogue& e, int n, bool exists) {
    OutputColumn column = {};
    column.exists = exists;
    column.n = exists ? n : 0;
    if (e.kind == Epilogue::Kind::kAffine) {
      column.scale = e.scale[column.n];
      column.bias = e.bias[column.n];
      if (e.residual_scale != nullptr) {
        column.residual_scale = e.residual_scale[column.n];
        column.residual_bias = e.residual_bias[column.n];
      }
      if (e.rprelu != nullptr) {
        column.before = e.rprelu[column.n];
        column.slope = e.rprelu[e.N + column.n];
        column.after = e.rprelu[2 * e.N + column.n];
      }
    }
    if (e.kind == Epilogue::Kind::kThreshold) {
      column.thresholds[0] = e.thresholds[column.n];
      column.thresholds[1] = e.residual_words == nullptr ? 0 : e.thresholds[e.N + column.n];
      column.flip = e.flip_words[column.n / kWordBits] >> (column.n % kWordBits) & 1;
    }
    return column;
  }
};

// Writes the bits of outputs [start, start + count) of a row; count is at most 32, and they may lie across two words.
__device__ inline void store_bits(const Epilogue& e, int64_t row, int start, int count, uint32_t bits) {
  uint32_t* out = static_cast<uint32_t*>(e.out) + row * words_for(e.N) + start / kWordBits;
  const int shift = start % kWordBits;
  if (shift == 0 && (count == kWordBits || start + count == e.N)) {
    *out = bits;
    return;
  }
  // Groups whose outputs are no multiple of 32 share words, which were cleared before.
  or_atomically(out, bits << shift);
  if (shift != 0 && bits >> (kWordBits - shift) != 0) or_atomically(out + 1, bits >> (kWordBits - shift));
}

__device__ inline float affine(const Epilogue& e, float x, float scale, float bias) {
  return e.fused ? fused_multiply_add(x, scale, bias) : multiply_add_rounded(x, scale, bias);
}

// Writes a dot product of a row; lane i of the warp has that of output start + i, of which `left` exist.
__device__ inline void write_output(const Epilogue& e, int64_t row, const OutputColumn& column, int dot, int start,
                                    int left) {
  const int64_t at = row * e.N + column.n;
  if (e.kind == Epilogue::Kind::kInt32) {
    if (column.exists) static_cast<int32_t*>(e.out)[at] = dot;
  } else if (e.kind == Epilogue::Kind::kAffine) {
    if (!column.exists) return;
    float y = affine(e, static_cast<float>(dot), column.scale, column.bias);
    if (e.residual != nullptr) {
      float residual = load_float(e.residual, e.residual_type, at);
      if (e.residual_scale != nullptr) residual = affine(e, residual, column.residual_scale, column.residual_bias);
      y = add_rounded(y, residual);
    }
    if (e.rprelu != nullptr) {
      y = add_rounded(y, column.before);
      y = y > 0.0f ? add_rounded(y, column.after) : multiply_add_rounded(y, column.slope, column.after);
    }
    store_float(e.out, e.out_type, at, y);
  } else {
    uint32_t set = 0;
    if (e.residual_words != nullptr)
      set = e.residual_words[row * words_for(e.N) + column.n / kWordBits] >> (column.n % kWordBits) & 1;
    const bool below = dot < (set == 0 ? column.thresholds[0] : column.thresholds[1]);
    const uint32_t bits = ballot(column.exists && below != (column.flip != 0));
    if (threadIdx.x % 32 == 0) store_bits(e, row, start, left < kWordBits ? left : kWordBits, bits);
  }
}

// The sums of an output's weights over taps.
struct TapSums {
  const int32_t* of;  // see weight_layout.h
  int64_t stride;
  int columns, all;

  __device__ TapSums(const Product& p, int padded_output)
      : of(p.sums + padded_output), stride(p.outputs_padded), columns(p.rows.kernel_w + 1) {
    all = of[static_cast<int64_t>(p.sum_count - 1) * stride];
  }

  __device__ int outside(uint32_t inside) const {
    const int y0 = inside & 255, y1 = inside >> 8 & 255, x0 = inside >> 16 & 255, x1 = inside >> 24;
    return all - (of[(y1 * columns + x1) * stride] - of[(y0 * columns + x1) * stride] -
                  of[(y1 * columns + x0) * stride] + of[(y0 * columns + x0) * stride]);
  }
};

// A warp's outputs [first_output, first_output + 32 kWords) of a group, for rows first_row to first_row + 15:
// `counts` [16][stride] holds the ones of a & w (kAnd) or of a ^ w, `ones` those of the rows. Lane i takes every 32nd
// output, so that a row is written side by side.
template <bool kAnd, int kWords>
__device__ inline void finish_rows(const Product& p, int group, int first_row, int first_output, const int* counts,
                                   int stride, const int* ones) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row_count = p.rows.count - first_row < 16 ? p.rows.count - first_row : 16;
  const BorderRows border = BorderRows::of(p.rows, first_row, lane % 16);
  for (int word = 0; word < kWords; ++word) {
    const int first = first_output + kWordBits * word, left = p.group_outputs - first;
    if (left <= 0) return;
    const bool exists = lane < left;
    const int start = group * p.group_outputs + first;
    const OutputColumn column = OutputColumn::at(p.epilogue, start + lane, exists);
    const TapSums sums(p, group * p.panels_per_group * kPanel + (exists ? first + lane : 0));
    for (int r = 0; r < row_count; ++r) {
      const int found = counts[r * stride + kWordBits * word + lane];
      int dot = kAnd ? sums.all - 2 * ones[r] + 4 * found : p.K - 2 * found;
      // The bits of taps outside are zero, so that they added the sum of their weights.
      if (border.rows >> r & 1) dot -= p.rows.outside * sums.outside(shuffle(border.inside, r));
      write_output(p.epilogue, first_row + r, column, dot, start, left);
    }
  }
}

}  // namespace stompp::cuda
