// A warp has the 32 channels of a word and goes from pixel to pixel: each lane picks its channel's bit from words that
// the whole warp reads at once.
#include "cuda/bconv2d/small_groups.h"

#include "cuda/product/epilogue.cuh"

namespace stompp::cuda {

constexpr int kWarps = 8, kPixelsPerWarp = 8;

struct SmallGroups {
  Rows rows;
  const uint32_t* weights;
  int padding_value;
  Epilogue epilogue;
};

// What the epilogue has for the output of a lane, the same for all pixels.
template <Kind kKind>
struct OutputColumn {
  bool exists;
  int n;
  int thresholds[2];
  uint32_t flip;
  AffineColumn affine;

  __device__ static OutputColumn at(const Epilogue& e, int n, bool exists) {
    OutputColumn column = {};
    column.exists = exists;
    column.n = exists ? n : 0;
    if (kKind == Kind::kAffine) column.affine = AffineColumn::at(e, column.n);
    if (kKind == Kind::kThreshold) {
      column.thresholds[0] = e.thresholds[column.n];
      column.thresholds[1] = e.residual_words == nullptr ? 0 : e.thresholds[e.N + column.n];
      column.flip = e.flip_words[column.n / kWordBits] >> (column.n % kWordBits) & 1;
    }
    return column;
  }

  // Writes a dot product of a row; lane i of the warp has that of output start + i, of which `left` exist.
  __device__ void write(const Epilogue& e, int64_t row, int dot, int start, int left) const {
    const int64_t at = row * e.N + n;
    if (kKind == Kind::kInt32) {
      if (exists) static_cast<int32_t*>(e.out)[at] = dot;
    } else if (kKind == Kind::kAffine) {
      const float y = exists ? value(e, at, dot) : 0.0f;
      if (exists && e.out != nullptr) store_float(e.out, e.out_type, at, y);
      if (e.sign_words == nullptr) return;
      write_bits(e, e.sign_words, row, exists && (y < affine.low || y > affine.high), start, left);
    } else {
      uint32_t set = 0;
      if (e.residual_words != nullptr)
        set = e.residual_words[row * words_for(e.N) + n / kWordBits] >> (n % kWordBits) & 1;
      const bool below = dot < (set == 0 ? thresholds[0] : thresholds[1]);
      write_bits(e, static_cast<uint32_t*>(e.out), row, exists && below != (flip != 0), start, left);
    }
  }

  // Writes the bits of the warp's outputs to a row of `words`.
  __device__ static void write_bits(const Epilogue& e, uint32_t* words, int64_t row, bool bit, int start, int left) {
    const uint32_t bits = ballot(bit);
    if (threadIdx.x % 32 == 0)
      store_bits(e, words + row * words_for(e.N), start, left < kWordBits ? left : kWordBits, bits);
  }

  __device__ float value(const Epilogue& e, int64_t at, int dot) const {
    float y = multiply_add(e.fused, static_cast<float>(dot), affine.scale, affine.bias);
    if (e.residual != nullptr) {
      float residual = load_float(e.residual, e.residual_type, at);
      if (e.residual_scale != nullptr)
        residual = multiply_add(e.fused, residual, affine.residual_scale, affine.residual_bias);
      y = add_rounded(y, residual);
    }
    return e.rprelu == nullptr ? y : rprelu(y, affine.before, affine.slope, affine.after);
  }
};

struct TapCount {
  int products, differ;
};

// The products of this lane's channel over the taps of one pixel: how many there are, and how many differ.
__device__ inline TapCount count_taps(const SmallGroups& d, const Row& row, int word, int lane) {
  const Rows& rows = d.rows;
  const int g = rows.group_channels, taps = rows.kernel_h * rows.kernel_w;
  const uint32_t padding = d.padding_value < 0 ? ~0u : 0u;
  TapCount result = {0, 0};
  for (int ty = 0; ty < rows.kernel_h; ++ty)
    for (int tx = 0; tx < rows.kernel_w; ++tx) {
      const int y = row.y + ty * rows.dilation_h, x = row.x + tx * rows.dilation_w;
      const bool inside = y >= 0 && y < rows.height && x >= 0 && x < rows.width;
      if (!inside && d.padding_value == 0) continue;
      const int64_t pixel = static_cast<int64_t>(y) * rows.width + x;
      const uint32_t input = inside ? row.base[pixel * rows.pixel_words + word] : padding;
      const uint32_t* weight = d.weights + static_cast<int64_t>(word) * g * taps + ty * rows.kernel_w + tx;
      for (int turn = 0; turn < g; ++turn) {
        const int channel = (lane & ~(g - 1)) | ((lane + turn) & (g - 1));
        result.differ += static_cast<int>((input >> channel ^ weight[turn * taps] >> lane) & 1u);
      }
      result.products += g;
    }
  return result;
}

template <Kind kKind>
__global__ void __launch_bounds__(32 * kWarps) small_groups_kernel(const SmallGroups d) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int word = static_cast<int>(blockIdx.y), start = word * kWordBits;
  const int left = static_cast<int>(d.epilogue.N) - start;
  const auto column = OutputColumn<kKind>::at(d.epilogue, start + lane, lane < left);
  const int first = (static_cast<int>(blockIdx.x) * kWarps + warp) * kPixelsPerWarp;
  for (int m = first; m < first + kPixelsPerWarp && m < d.rows.count; ++m) {
    const TapCount taps = count_taps(d, Row::at(d.rows, m), word, lane);
    column.write(d.epilogue, m, taps.products - 2 * taps.differ, start, left);
  }
}

Status small_groups_conv2d(const uint32_t* x, const Conv2dShape& shape, const DeviceWeight& weight,
                           const Epilogue& epilogue, Stream stream) {
  const Rows rows = conv2d_product(x, shape, weight, epilogue).rows;
  const SmallGroups groups = {rows, weight.words, shape.padding_value, epilogue};
  constexpr int kPixels = kWarps * kPixelsPerWarp;
  const Size3 grid = {static_cast<unsigned>(ceil_div(rows.count, kPixels)),
                      static_cast<unsigned>(words_for(epilogue.N)), 1};
  switch (epilogue.kind) {
    case Kind::kInt32:
      return launch<small_groups_kernel<Kind::kInt32>>(grid, 32 * kWarps, stream, groups);
    case Kind::kAffine:
      return launch<small_groups_kernel<Kind::kAffine>>(grid, 32 * kWarps, stream, groups);
    default:
      return launch<small_groups_kernel<Kind::kThreshold>>(grid, 32 * kWarps, stream, groups);
  }
}

}  // namespace stompp::cuda
