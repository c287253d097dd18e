#include "cuda/pack_weight/pack_weight.h"

namespace stompp::cuda {

constexpr int kPackThreads = 256;

struct PackWeight {
  WeightShape shape;
  WeightLayout layout;
  const uint32_t* from;
  uint32_t* to;

  __device__ int64_t tap_words() const { return words_for(shape.in_channels); }
  __device__ int64_t row_words() const { return shape.taps() * tap_words(); }

  // The portable word of an output, its tail bits taken off.
  __device__ uint32_t portable(int64_t output, int64_t word) const {
    const int64_t left = shape.in_channels - word % tap_words() * kWordBits;
    return from[output * row_words() + word] & (left >= kWordBits ? ~0u : (1u << left) - 1u);
  }

  // Among the outputs of all groups, with those that pad a group; -1 for such a one.
  __device__ int64_t output_of(int64_t padded) const {
    const int64_t group_padded = layout.panels_per_group * kPanel, within = padded % group_padded;
    return within < shape.group_outputs() ? padded / group_padded * shape.group_outputs() + within : -1;
  }

  // Word `word` of padded output `padded`, in the packed panels.
  __device__ int64_t place(int64_t padded, int64_t word) const {
    return layout.sums_words() + padded / kPanel * layout.panel_words() +
           word_in_panel(static_cast<int>(padded % kPanel), word);
  }
};

// This thread's first item, the first thread of the grid's having 0.
__device__ inline int64_t first_item() {
  return static_cast<int64_t>(blockIdx.x) * kPackThreads + static_cast<int64_t>(threadIdx.x);
}

// An item is a word of a padded output.
__global__ void pack_panels_kernel(const PackWeight p) {
  const int64_t words = p.layout.k_blocks * kBlockWords, item = first_item();
  if (item >= p.layout.outputs_padded() * words) return;
  const int64_t padded = item / words, word = item % words, output = p.output_of(padded);
  p.to[p.place(padded, word)] = output < 0 || word >= p.row_words() ? 0u : p.portable(output, word);
}

// An item is a padded output: the sums over the taps before (y, x), of every y and x.
__global__ void sum_taps_kernel(const PackWeight p) {
  const int64_t padded = first_item(), stride = p.layout.outputs_padded(), columns = p.shape.kernel_w + 1;
  if (padded >= stride) return;
  const int64_t output = p.output_of(padded);
  int32_t* sums = reinterpret_cast<int32_t*>(p.to) + padded;
  for (int64_t y = 0; y <= p.shape.kernel_h; ++y) {
    int32_t row = 0;
    for (int64_t x = 0; x <= p.shape.kernel_w; ++x) {
      if (y > 0 && x > 0 && output >= 0) {
        const int64_t tap = (y - 1) * p.shape.kernel_w + x - 1;
        int ones = 0;
        for (int64_t w = 0; w < p.tap_words(); ++w) ones += count_ones(p.portable(output, tap * p.tap_words() + w));
        row += static_cast<int32_t>(p.shape.in_channels) - 2 * ones;
      }
      sums[(y * columns + x) * stride] = row + (y > 0 ? sums[((y - 1) * columns + x) * stride] : 0);
    }
  }
}

// An item is a portable word.
__global__ void unpack_panels_kernel(const PackWeight p) {
  const int64_t item = first_item(), words = p.row_words();
  if (item >= p.shape.out_channels * words) return;
  const int64_t output = item / words, outputs = p.shape.group_outputs();
  const int64_t padded = output / outputs * p.layout.panels_per_group * kPanel + output % outputs;
  p.to[item] = p.from[p.place(padded, item % words)];
}

// An item is a word of channels.
__global__ void pack_small_groups_kernel(const PackWeight p) {
  const int64_t item = first_item(), taps = p.shape.taps(), g = p.shape.in_channels;
  if (item >= p.layout.words()) return;
  const int64_t tap = item % taps, turn = item / taps % g, first = item / (taps * g) * kWordBits;
  uint32_t bits = 0;
  for (int64_t i = 0; i < kWordBits && first + i < p.shape.out_channels; ++i)
    bits |= (p.from[(first + i) * taps + tap] >> ((i + turn) % g) & 1u) << i;
  p.to[item] = bits;
}

// An item is a portable word: the g weights of an output's tap.
__global__ void unpack_small_groups_kernel(const PackWeight p) {
  const int64_t item = first_item(), taps = p.shape.taps(), g = p.shape.in_channels;
  if (item >= p.shape.out_channels * taps) return;
  const int64_t channel = item / taps, tap = item % taps;
  uint32_t bits = 0;
  for (int64_t turn = 0; turn < g; ++turn)
    bits |= (p.from[(channel / kWordBits * g + turn) * taps + tap] >> (channel % kWordBits) & 1u)
            << ((channel + turn) % g);
  p.to[item] = bits;
}

template <void (*kKernel)(PackWeight)>
Status launch_items(int64_t items, const PackWeight& p, Stream stream) {
  const Size3 grid = {static_cast<unsigned>(ceil_div(items, kPackThreads)), 1, 1};
  return launch<kKernel>(grid, kPackThreads, stream, p);
}

Status pack_weight(const uint32_t* words, const WeightShape& shape, uint32_t* out, Stream stream) {
  const PackWeight p = {shape, WeightLayout::of(shape), words, out};
  if (shape.small_groups()) return launch_items<pack_small_groups_kernel>(p.layout.words(), p, stream);
  const int64_t padded = p.layout.outputs_padded();
  const Status status = launch_items<pack_panels_kernel>(padded * p.layout.k_blocks * kBlockWords, p, stream);
  return status.is_ok() ? launch_items<sum_taps_kernel>(padded, p, stream) : status;
}

Status unpack_weight(const uint32_t* packed, const WeightShape& shape, uint32_t* words, Stream stream) {
  const PackWeight p = {shape, WeightLayout::of(shape), packed, words};
  const int64_t items = shape.out_channels * shape.taps() * words_for(shape.in_channels);
  if (shape.small_groups()) return launch_items<unpack_small_groups_kernel>(items, p, stream);
  return launch_items<unpack_panels_kernel>(items, p, stream);
}

}  // namespace stompp::cuda
