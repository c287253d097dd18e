// The binary product that bgemm and bconv2d share on a GPU: rows of bits times packed weights, then an epilogue.
//
// A row of the product is a row of a matrix, or the taps of an output pixel side by side: an implicit matrix product.
// Taps outside the input are read as zero bits, that is as +1; `Rows::outside` says how much of what they then add is
// taken back.
#pragma once

#include <cstdint>

#include "core/base/status.h"
#include "core/product/bconv2d.h"
#include "core/product/epilogue.h"
#include "cuda/platform.cuh"
#include "cuda/weight_layout.h"

namespace stompp::cuda {

// n / divisor for n below 2^31.
struct Divider {
  uint32_t divisor = 1, multiplier = 0, shift = 0;

  static Divider by(uint32_t divisor) {
    if (divisor == 1) return {};
    uint32_t bits = 0;
    while ((uint64_t{1} << bits) < divisor) ++bits;
    // multiplier = ceil(2^(31 + bits) / divisor) fits 32 bits, and its error stays below 2^-31 a unit of n.
    const uint64_t power = uint64_t{1} << (31 + bits);
    return {divisor, static_cast<uint32_t>((power + divisor - 1) / divisor), bits - 1};
  }
};

// Where the rows of the product come from.
struct Rows {
  const uint32_t* x;
  int count;        // M
  int words;        // of a row of K: taps x words_for(channels of a group)
  int k_blocks;     // ceil(words / kBlockWords)
  int granule;      // words of x that stand together and are aligned: 4, 2 or 1; 0 where groups do not begin on a word
  int pixel_words;  // of all groups; of a matrix: of a row
  int group_channels;
  // Convolutions: sizes of input, output and kernel, and the dividers that a row and a word of it are taken apart with.
  bool is_matrix;
  int height, width, kernel_h, kernel_w, stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w;
  int outside;  // times the sum of the weights of the taps outside: 0, 1 or 2 for padding with +1, 0 or -1
  Divider image_pixels, out_width, tap_words, tap_columns;
};

struct Product {
  Rows rows;
  const uint32_t* panels;
  const int32_t* sums;
  int group_outputs, panels_per_group, outputs_padded, sum_count;
  int K;  // of an output
  Epilogue epilogue;

  int groups() const { return outputs_padded / (panels_per_group * kPanel); }
};

// Packed weights of this shape on the device; a matrix has one tap and one group.
struct DeviceWeight {
  WeightShape shape;
  const uint32_t* words;  // WeightLayout::bytes() of them, 16-byte aligned
};

// x: [M][words_for(K)].
Product matrix_product(const uint32_t* x, int64_t M, const DeviceWeight& weight, const Epilogue& epilogue);
// x: [batch][height][width][words_for(channels)].
Product conv2d_product(const uint32_t* x, const Conv2dShape& shape, const DeviceWeight& weight,
                       const Epilogue& epilogue);

// Refuses what the 32-bit indices of the kernels cannot count.
Status check_product(int64_t rows, const WeightShape& weight);

}  // namespace stompp::cuda
