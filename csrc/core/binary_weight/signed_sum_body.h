// The kernels of binary_weight/kernels.h, written once for every instruction set: see base/target.h. Behind
// channel_sum_body.h. Signs of 32 outputs are expanded once for some rows, then each product is an XOR and an addition.
// An instruction set that has a faster way replaces `sums`, and one with fused multiply-adds `channels`.

using Floats = float __attribute__((vector_size(32)));
using Signs = uint32_t __attribute__((vector_size(32)));
// These are vectors as they lie in memory. By memcpy a vector would be moved in the halves that the baseline has.
using FloatsAnywhere = float __attribute__((vector_size(32), aligned(4), may_alias));
using SignsAnywhere = uint32_t __attribute__((vector_size(32), aligned(4), may_alias));
constexpr int64_t kLanes = 8;
constexpr int kVectors = kPanelOutputs / kLanes;

// The signs of 32 inputs of a panel: bit 31 is set where the weight is -1.
struct ExpandedSigns {
  Signs of[kWordBits][kVectors];
};

// Loops over vectors are unrolled, so that the arrays become registers.
STOMPP_TARGET_INLINE void load_vectors(const float* from, Floats (&to)[kVectors]) {
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) to[v] = *reinterpret_cast<const FloatsAnywhere*>(from + v * kLanes);
}

STOMPP_TARGET_INLINE void load_vectors(const uint32_t* from, Signs (&to)[kVectors]) {
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) to[v] = *reinterpret_cast<const SignsAnywhere*>(from + v * kLanes);
}

STOMPP_TARGET_INLINE void store_vectors(const Floats (&from)[kVectors], float* to) {
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) *reinterpret_cast<FloatsAnywhere*>(to + v * kLanes) = from[v];
}

STOMPP_TARGET_INLINE void add_turned(const Floats& x, const Signs& signs, Floats* sum) {
  *sum += reinterpret_cast<Floats>(reinterpret_cast<Signs>(x) ^ signs);
}

STOMPP_TARGET_INLINE void clear_sums(const SignedSumBlock& block) {
  for (int64_t r = 0; r < block.row_count; ++r)
    std::memset(block.sums + r * block.stride, 0, static_cast<size_t>(block.panel_count * kPanelOutputs * 4));
}

// Expands one word of inputs of 32 outputs.
STOMPP_TARGET_INLINE void expand_inputs(const uint32_t* words, int64_t inputs, ExpandedSigns* signs) {
  Signs bits[kVectors];
  load_vectors(words, bits);
  for (int64_t k = 0; k < inputs; ++k)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      signs->of[k][v] = bits[v] << 31;
      bits[v] >>= 1;
    }
}

// Adds `inputs` inputs of tap `tap` of the block to the sums of a panel.
STOMPP_TARGET_INLINE void add_inputs(const SignedSumBlock& block, int64_t tap, int64_t word, int64_t inputs,
                                     const ExpandedSigns& signs, float* out) {
  for (int64_t r = 0; r < block.row_count; ++r, out += block.stride) {
    const float* x = block.rows[tap * block.row_count + r] + word * kWordBits;
    Floats sums[kVectors];
    load_vectors(out, sums);
    for (int64_t k = 0; k < inputs; ++k) {
      const Floats same = Floats{} + x[k];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) add_turned(same, signs.of[k][v], &sums[v]);
    }
    store_vectors(sums, out);
  }
}

STOMPP_TARGET void add_up_floats(const SignedSumBlock& block) {
  const int64_t words = words_for(block.inputs);
  clear_sums(block);
  ExpandedSigns signs;
  for (int64_t panel = 0; panel < block.panel_count; ++panel)
    for (int64_t t = 0; t < block.tap_count; ++t) {
      const uint32_t* tap = block.panels + (panel * block.panel_taps + block.taps[t]) * words * kPanelOutputs;
      for (int64_t word = 0; word < words; ++word) {
        const int64_t left = block.inputs - word * kWordBits, inputs = left < kWordBits ? left : kWordBits;
        expand_inputs(tap + word * kPanelOutputs, inputs, &signs);
        add_inputs(block, t, word, inputs, signs, block.sums + panel * kPanelOutputs);
      }
    }
}

STOMPP_TARGET void widen(const void* x, FloatType type, int64_t count, float* out) {
  if (type == FloatType::kFloat16)
    for (int64_t i = 0; i < count; ++i) out[i] = Float16::load(x, i);
  else
    for (int64_t i = 0; i < count; ++i) out[i] = BFloat16::load(x, i);
}

// Scales up to 32 outputs; the count is a constant for whole panels. The loops go around a local array: the buffers
// might alias, and only so is the arithmetic vectorized.
template <class Type>
STOMPP_TARGET_INLINE void scale_panel(const float* sums, const float* scale, const float* bias, int64_t count,
                                      int64_t first, void* out) {
  float y[kPanelOutputs];
  for (int64_t i = 0; i < count; ++i) y[i] = sums[i] * scale[i];
  if (bias != nullptr)
    for (int64_t i = 0; i < count; ++i) y[i] = y[i] + bias[i];
  for (int64_t i = 0; i < count; ++i) Type::store(out, first + i, y[i]);
}

template <class Type>
STOMPP_TARGET_INLINE void scale_as(const float* sums, const float* scale, const float* bias, int64_t count, void* out) {
  for (int64_t i = 0; i < count; i += kPanelOutputs) {
    const float* b = bias == nullptr ? nullptr : bias + i;
    if (count - i >= kPanelOutputs)
      scale_panel<Type>(sums + i, scale + i, b, kPanelOutputs, i, out);
    else
      scale_panel<Type>(sums + i, scale + i, b, count - i, i, out);
  }
}

STOMPP_TARGET void scale_sums(const float* sums, const float* scale, const float* bias, int64_t count, FloatType type,
                              void* out) {
  if (type == FloatType::kFloat32) return scale_as<Float32>(sums, scale, bias, count, out);
  if (type == FloatType::kFloat16) return scale_as<Float16>(sums, scale, bias, count, out);
  scale_as<BFloat16>(sums, scale, bias, count, out);
}

constexpr SignedSumKernels signed_sum_kernels() {
  SignedSumKernels kernels = {};
  kernels.sums.rows = kMaxSumRows;
  kernels.sums.word_floats = kWordBits;
  kernels.sums.prepare = prepare_floats;
  kernels.sums.add_up = add_up_floats;
  kernels.channels = channel_sum_kernel<PlainLanes>();
  kernels.widen = widen;
  kernels.scale_sums = scale_sums;
  return kernels;
}
