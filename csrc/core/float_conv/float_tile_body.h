// The kernels of float_tile.h, written once for every instruction set: see base/target.h. Besides the target, what it
// is included by defines
//
//   struct Lanes   kPixels of a tile, kVectors of a panel, and operations on a Vector of kFloats

static_assert(Lanes::kPixels <= kMostTilePixels, "callers keep that many");
constexpr int64_t kLineFloats = 16;  // of a cache line
constexpr int64_t kStepsAFetch = 8;

// Sums of kPixels pixels, all in registers. Loops over them are unrolled before gcc looks for arrays to keep there.
template <int kPixels>
struct TileSums {
  Lanes::Vector of[kPixels][Lanes::kVectors];

  // Begins the sums at zero, or at a value of each output.
  STOMPP_TARGET_INLINE void begin(const float* values) {
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p)
#pragma GCC unroll 32
      for (int v = 0; v < Lanes::kVectors; ++v)
        of[p][v] = values == nullptr ? Lanes::zero() : Lanes::load(values + v * Lanes::kFloats);
  }

  STOMPP_TARGET_INLINE void add_up(const FloatTile& tile) {
    begin(nullptr);
    const float *weights = tile.weights, *ahead = tile.ahead, *ahead_end = ahead + tile.ahead_floats;
    const int64_t step = tile.step;
    for (int64_t run = 0; run < tile.run_count; ++run) {
      const float *x = tile.runs[run], *end = x + tile.run_floats;
      while (x < end) {
        if (ahead < ahead_end) {
          __builtin_prefetch(ahead, 0, 2);
          ahead += kLineFloats;
        }
        const float* stop = end - x > kStepsAFetch ? x + kStepsAFetch : end;
        for (; x < stop; ++x, weights += kPanelOutputs) add_products(x, step, weights);
      }
    }
  }

  // Either pixels or vectors, whichever are fewer, stay in registers for the others.
  STOMPP_TARGET_INLINE void add_products(const float* x, int64_t step, const float* weights) {
    if constexpr (kPixels <= Lanes::kVectors) {
      Lanes::Vector same[kPixels];
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) same[p] = Lanes::broadcast(x + p * step);
#pragma GCC unroll 32
      for (int v = 0; v < Lanes::kVectors; ++v) {
        const Lanes::Vector w = Lanes::load(weights + v * Lanes::kFloats);
#pragma GCC unroll 16
        for (int p = 0; p < kPixels; ++p) of[p][v] = Lanes::multiply_add(same[p], w, of[p][v]);
      }
    } else {
      Lanes::Vector w[Lanes::kVectors];
#pragma GCC unroll 32
      for (int v = 0; v < Lanes::kVectors; ++v) w[v] = Lanes::load(weights + v * Lanes::kFloats);
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        const Lanes::Vector same = Lanes::broadcast(x + p * step);
#pragma GCC unroll 32
        for (int v = 0; v < Lanes::kVectors; ++v) of[p][v] = Lanes::multiply_add(same, w[v], of[p][v]);
      }
    }
  }

  STOMPP_TARGET_INLINE void write(const FloatTileOut& out) const {
#pragma GCC unroll 32
    for (int v = 0; v < Lanes::kVectors; ++v) {
      const int64_t n = v * Lanes::kFloats;
#pragma GCC unroll 16
      for (int p = 0; p < kPixels; ++p) {
        Lanes::Vector y = of[p][v];
        if (out.scale != nullptr) {
          const Lanes::Vector scale = Lanes::load(out.scale + n), bias = Lanes::load(out.bias + n);
          y = out.fused ? Lanes::multiply_add(y, scale, bias) : Lanes::add(Lanes::multiply(y, scale), bias);
        }
        Lanes::store(out.out + p * out.stride + n, y);
      }
    }
  }

  STOMPP_TARGET_INLINE void write(const FloatTileBits& out) const {
#pragma GCC unroll 16
    for (int p = 0; p < kPixels; ++p) {
      uint32_t word = 0;
#pragma GCC unroll 32
      for (int v = 0; v < Lanes::kVectors; ++v) {
        const int64_t n = v * Lanes::kFloats;
        word |= Lanes::outside(of[p][v], Lanes::load(out.low + n), Lanes::load(out.high + n)) << n;
      }
      out.words[p * out.stride] = word;
    }
  }
};

template <int kPixels, class Out>
STOMPP_TARGET void run_tile(const FloatTile& tile, const Out& out) {
  TileSums<kPixels> sums;
  sums.add_up(tile);
  sums.write(out);
}

template <class Out, int... kPixelsBefore>
STOMPP_TARGET void run_tile_of(const FloatTile& tile, const Out& out, std::integer_sequence<int, kPixelsBefore...>) {
  using Run = void (*)(const FloatTile&, const Out&);
  static constexpr Run kRuns[] = {run_tile<kPixelsBefore + 1, Out>...};
  kRuns[tile.pixels - 1](tile, out);
}

STOMPP_TARGET void multiply_tile(const FloatTile& tile, const FloatTileOut& out) {
  run_tile_of(tile, out, std::make_integer_sequence<int, Lanes::kPixels>());
}

STOMPP_TARGET void compare_tile(const FloatTile& tile, const FloatTileBits& out) {
  run_tile_of(tile, out, std::make_integer_sequence<int, Lanes::kPixels>());
}
