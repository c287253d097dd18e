// The kernels of channel_sum.h, written once for every instruction set: see base/target.h.

// The registers of instruction sets without fused multiply-adds for all vectors.
struct PlainLanes {
  using Vector = float __attribute__((vector_size(16)));
  using Anywhere = float __attribute__((vector_size(16), aligned(4), may_alias));
  static constexpr int kFloats = 4;

  STOMPP_TARGET_INLINE static Vector zero() { return Vector{}; }
  STOMPP_TARGET_INLINE static Vector load(const float* p) { return *reinterpret_cast<const Anywhere*>(p); }
  STOMPP_TARGET_INLINE static void store(float* p, Vector v) { *reinterpret_cast<Anywhere*>(p) = v; }
  STOMPP_TARGET_INLINE static Vector add(Vector a, Vector b) { return a + b; }
  STOMPP_TARGET_INLINE static Vector multiply(Vector a, Vector b) { return a * b; }
  STOMPP_TARGET_INLINE static Vector multiply_add(Vector a, Vector b, Vector c) { return a * b + c; }
};

// A tile is 12 sums in registers, beside a tap's weights: of whole words where registers hold eight floats or more.
template <class Lanes>
constexpr int kTileVectors = Lanes::kFloats < 8 ? 2 : kPanelOutputs / Lanes::kFloats;
template <class Lanes>
constexpr int kTilePixels = 12 / kTileVectors<Lanes>;

template <class Lanes, int kPixels, int kVectors>
struct ChannelTile {
  typename Lanes::Vector of[kPixels][kVectors];

  STOMPP_TARGET_INLINE void add_products(const float* x, int64_t step, const float* weights) {
    typename Lanes::Vector w[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) w[v] = Lanes::load(weights + v * Lanes::kFloats);
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        of[p][v] = Lanes::multiply_add(Lanes::load(x + v * Lanes::kFloats), w[v], of[p][v]);
      x += step;
      // Without this gcc keeps the offset of each pixel and vector, more than there are registers.
      __asm__("" : "+r"(x));
    }
  }

  STOMPP_TARGET_INLINE void run(const ChannelSumBlock& block, int64_t pixel, int64_t channel) {
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) of[p][v] = Lanes::zero();
    const int64_t word = channel / kPanelOutputs, in_word = channel % kPanelOutputs, step = block.pixel_step;
    for (int64_t turn = word * block.turns; turn < (word + 1) * block.turns; ++turn) {
      const int64_t at = turn * kPanelOutputs + in_word;
      const float* weights = block.weights + turn * block.weight_taps * kPanelOutputs + in_word;
      for (int64_t t = 0; t < block.tap_count; ++t)
        add_products(block.inputs[t] + at + pixel * step, step, weights + block.taps[t] * kPanelOutputs);
    }
    if (block.scale != nullptr) scale(block, channel);
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v)
        Lanes::store(block.out + (pixel + p) * block.stride + channel + v * Lanes::kFloats, of[p][v]);
  }

  // As scale_sums: each operation rounds.
  STOMPP_TARGET_INLINE void scale(const ChannelSumBlock& block, int64_t channel) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const typename Lanes::Vector factor = Lanes::load(block.scale + channel + v * Lanes::kFloats);
#pragma GCC unroll 8
      for (int p = 0; p < kPixels; ++p) of[p][v] = Lanes::multiply(of[p][v], factor);
    }
    if (block.bias == nullptr) return;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const typename Lanes::Vector shift = Lanes::load(block.bias + channel + v * Lanes::kFloats);
#pragma GCC unroll 8
      for (int p = 0; p < kPixels; ++p) of[p][v] = Lanes::add(of[p][v], shift);
    }
  }
};

template <class Lanes, int kPixels>
STOMPP_TARGET void add_up_pixels(const ChannelSumBlock& block, int64_t pixel) {
  constexpr int64_t kMost = kTileVectors<Lanes> * Lanes::kFloats;
  static_assert(kPanelOutputs % kMost == 0, "a tile's channels are of one word");
  int64_t channel = 0;
  for (; channel + kMost <= block.channels; channel += kMost) {
    ChannelTile<Lanes, kPixels, kTileVectors<Lanes>> tile;
    tile.run(block, pixel, channel);
  }
  for (; channel < block.channels; channel += Lanes::kFloats) {
    ChannelTile<Lanes, kPixels, 1> tile;
    tile.run(block, pixel, channel);
  }
}

template <class Lanes>
STOMPP_TARGET void add_up_channels(const ChannelSumBlock& block) {
  constexpr int kPixels = kTilePixels<Lanes>;
  int64_t pixel = 0;
  for (; pixel + kPixels <= block.pixels; pixel += kPixels) add_up_pixels<Lanes, kPixels>(block, pixel);
  for (; pixel + 2 <= block.pixels; pixel += 2) add_up_pixels<Lanes, 2>(block, pixel);
  if (pixel < block.pixels) add_up_pixels<Lanes, 1>(block, pixel);
}

STOMPP_TARGET void prepare_floats(const float* x, int64_t inputs, float* prepared) {
  std::memcpy(prepared, x, static_cast<size_t>(inputs) * sizeof(float));
  std::memset(prepared + inputs, 0, static_cast<size_t>(round_up(inputs, kWordBits) - inputs) * sizeof(float));
}

// Prepares [turns][32] floats of each word of channels.
STOMPP_TARGET void prepare_channels(const float* x, int64_t inputs, int64_t turns, float* prepared) {
  if (turns == 1) return prepare_floats(x, inputs, prepared);
  for (int64_t first = 0; first < inputs; first += kPanelOutputs) {
    const int64_t left = inputs - first, count = left < kPanelOutputs ? left : kPanelOutputs;
    float channels[kPanelOutputs] = {};
    std::memcpy(channels, x + first, static_cast<size_t>(count) * sizeof(float));
    for (int64_t turn = 0; turn < turns; ++turn, prepared += kPanelOutputs)
      for (int64_t c = 0; c < kPanelOutputs; ++c) prepared[c] = channels[(c & -turns) | ((c + turn) & (turns - 1))];
  }
}

template <class Lanes>
constexpr ChannelSumKernel channel_sum_kernel() {
  ChannelSumKernel kernel = {};
  kernel.lanes = Lanes::kFloats;
  kernel.prepare = prepare_channels;
  kernel.add_up = add_up_channels<Lanes>;
  return kernel;
}
