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

__global__ void __launch_bounds__(32 * kWarps) small_groups_kernel(const SmallGroups d) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int word = static_cast<int>(blockIdx.y), start = word * kWordBits;
  const int left = static_cast<int>(d.epilogue.N) - start;
  const OutputColumn column = OutputColumn::at(d.epilogue, start + lane, lane < left);
  const int first = (static_cast<int>(blockIdx.x) * kWarps + warp) * kPixelsPerWarp;
  for (int m = first; m < first + kPixelsPerWarp && m < d.rows.count; ++m) {
    const TapCount taps = count_taps(d, Row::at(d.rows, m), word, lane);
    write_output(d.epilogue, m, column, taps.products - 2 * taps.differ, start, left);
  }
}

Status small_groups_conv2d(const uint32_t* x, const Conv2dShape& shape, const DeviceWeight& weight,
                           const Epilogue& epilogue, Stream stream) {
  const Rows rows = conv2d_product(x, shape, weight, epilogue).rows;
  const SmallGroups groups = {rows, weight.words, shape.padding_value, epilogue};
  constexpr int kPixels = kWarps * kPixelsPerWarp;
  const Size3 grid = {static_cast<unsigned>(ceil_div(rows.count, kPixels)),
                      static_cast<unsigned>(words_for(epilogue.N)), 1};
  return launch<small_groups_kernel>(grid, 32 * kWarps, stream, groups);
}

}  // namespace stompp::cuda
