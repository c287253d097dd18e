// The kernels of winograd.h, written once for every instruction set: see base/target.h. It is included after
// float_tile_body.h, whose Lanes and sums it uses.

// A^T and B^T as floats.
struct WinogradFloats {
  float outputs[winograd::kRows][winograd::kPoints] = {}, lines[winograd::kPoints][winograd::kPoints] = {};
  constexpr WinogradFloats() {
    for (int p = 0; p < winograd::kPoints; ++p) {
      for (int i = 0; i < winograd::kRows; ++i) outputs[i][p] = static_cast<float>(winograd::kMatrices.outputs[i][p]);
      for (int i = 0; i < winograd::kPoints; ++i) lines[p][i] = static_cast<float>(winograd::kMatrices.lines[p][i]);
    }
  }
};
constexpr WinogradFloats kWinograd;

STOMPP_TARGET_INLINE float largest_of(Lanes::Vector x, float before) {
  float each[Lanes::kFloats];
  Lanes::store(each, x);
  for (const float value : each) before = value > before ? value : before;
  return before;
}

STOMPP_TARGET void transform_lines(const float* const* lines, int64_t floats, float* out, int64_t out_stride,
                                   winograd::Largest& largest) {
  using winograd::kPoints;
  Lanes::Vector largest_input = Lanes::zero(), largest_at[kPoints];
#pragma GCC unroll 16
  for (int p = 0; p < kPoints; ++p) largest_at[p] = Lanes::zero();
  for (int64_t at = 0; at < floats; at += Lanes::kFloats) {
    Lanes::Vector x[kPoints];
#pragma GCC unroll 16
    for (int i = 0; i < kPoints; ++i) {
      x[i] = Lanes::load(lines[i] + at);
      largest_input = Lanes::larger(Lanes::magnitude(x[i]), largest_input);
    }
#pragma GCC unroll 16
    for (int p = 0; p < kPoints; ++p) {
      Lanes::Vector sum = Lanes::zero();
#pragma GCC unroll 16
      for (int i = 0; i < kPoints; ++i)
        if (kWinograd.lines[p][i] != 0) sum = Lanes::multiply_add(Lanes::broadcast(&kWinograd.lines[p][i]), x[i], sum);
      largest_at[p] = Lanes::larger(Lanes::magnitude(sum), largest_at[p]);
      Lanes::store(out + p * out_stride + at, sum);
    }
  }
  largest.input = largest_of(largest_input, largest.input);
  for (int p = 0; p < kPoints; ++p) largest.lines[p] = largest_of(largest_at[p], largest.lines[p]);
}

// Adds up the sums at one point of pixels [first, end), a multiple of kPixels. A loop of its own over them costs a
// tenth less than calls, and over the floats of a line by pointer than by index.
template <int kPixels>
STOMPP_TARGET void add_up_point(const winograd::Tile& tile, int point, int64_t first, int64_t end, float* out) {
  const int64_t lines = tile.line_count, run = tile.run_floats, step = tile.step, stride = tile.line_stride;
  const float* all_weights = tile.weights + point * lines * run * kPanelOutputs;
  const float* start = point == winograd::kOne ? tile.starts : nullptr;
  for (const float* pixel = tile.lines + point * lines * stride + first * step; first < end; first += kPixels) {
    TileSums<kPixels> sums;
    sums.begin(start);
    const float *weights = all_weights, *x = pixel;
    for (int64_t line = 0; line < lines; ++line, x += stride - run)
      for (const float* line_end = x + run; x < line_end; ++x, weights += kPanelOutputs)
        sums.add_products(x, step, weights);
    sums.write({nullptr, nullptr, false, out + first * kPanelOutputs, kPanelOutputs});
    pixel += kPixels * step;
  }
}

// Multiplies A^T with a pixel's sums at the points, [kPoints] of `stride` floats, and says which are negative or in
// doubt.
STOMPP_TARGET_INLINE void compare_pixel(const float* sums, int64_t stride, const float* doubts, int64_t pixel,
                                        winograd::Bits& bits) {
  using winograd::kPairs;
  using winograd::kPoints;
  using winograd::kRows;
  uint32_t negative[kRows] = {}, doubtful[kRows] = {};
#pragma GCC unroll 32
  for (int v = 0; v < Lanes::kVectors; ++v) {
    const int64_t n = v * Lanes::kFloats;
    Lanes::Vector at[kPoints];
#pragma GCC unroll 16
    for (int p = 0; p < kPoints; ++p) at[p] = Lanes::load(sums + p * stride + n);
    // Even powers of two opposite points are the same, odd ones opposite.
    Lanes::Vector even[kPairs], odd[kPairs];
#pragma GCC unroll 16
    for (int i = 0; i < kPairs; ++i) {
      even[i] = Lanes::add(at[1 + 2 * i], at[2 + 2 * i]);
      odd[i] = Lanes::subtract(at[1 + 2 * i], at[2 + 2 * i]);
    }
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const float* power = kWinograd.outputs[row];
      Lanes::Vector sum = row % 2 == 0 ? even[0] : odd[0];
#pragma GCC unroll 16
      for (int i = 1; i < kPairs; ++i)
        sum = Lanes::multiply_add(Lanes::broadcast(power + 1 + 2 * i), row % 2 == 0 ? even[i] : odd[i], sum);
      if (row == 0) sum = Lanes::add(at[0], sum);
      if (row == kRows - 1) sum = Lanes::add(at[kPoints - 1], sum);
#pragma GCC unroll 16
      for (int p = 1 + 2 * kPairs; p < kPoints - 1; ++p)
        sum = Lanes::multiply_add(Lanes::broadcast(power + p), at[p], sum);
      negative[row] |= Lanes::negative(sum) << n;
      doubtful[row] |= Lanes::not_above(Lanes::magnitude(sum), Lanes::load(doubts + row * kPanelOutputs + n)) << n;
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < kRows; ++row) {
    bits.negative[row][pixel] = negative[row];
    bits.doubtful[row][pixel] = doubtful[row];
  }
}

template <int... kPixelsBefore>
STOMPP_TARGET void compare_rows_of(const winograd::Tile& tile, winograd::Bits& bits,
                                   std::integer_sequence<int, kPixelsBefore...>) {
  using Run = void (*)(const winograd::Tile&, int, int64_t, int64_t, float*);
  static constexpr Run kRuns[] = {add_up_point<kPixelsBefore + 1>...};
  constexpr int64_t kStride = winograd::kPixels * kPanelOutputs;
  alignas(64) float sums[winograd::kPoints * kStride];
  // The weights of a point are read for all pixels while they are near.
  const int64_t rest = tile.pixels % Lanes::kPixels, whole = tile.pixels - rest;
  for (int point = 0; point < winograd::kPoints; ++point) {
    float* out = sums + point * kStride;
    add_up_point<Lanes::kPixels>(tile, point, 0, whole, out);
    if (rest != 0) kRuns[rest - 1](tile, point, whole, tile.pixels, out);
  }
  for (int64_t pixel = 0; pixel < tile.pixels; ++pixel)
    compare_pixel(sums + pixel * kPanelOutputs, kStride, tile.doubts, pixel, bits);
}

STOMPP_TARGET void compare_rows(const winograd::Tile& tile, winograd::Bits& bits) {
  compare_rows_of(tile, bits, std::make_integer_sequence<int, Lanes::kPixels>());
}

constexpr FloatConvKernels float_conv_kernels() {
  FloatConvKernels kernels = {};
  kernels.tiles.pixels = Lanes::kPixels;
  kernels.tiles.multiply = multiply_tile;
  kernels.tiles.compare = compare_tile;
  kernels.winograd.transform = transform_lines;
  kernels.winograd.compare = compare_rows;
  kernels.bf16 = bf16_kernels();
  return kernels;
}
