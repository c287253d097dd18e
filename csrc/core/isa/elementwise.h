// Bodies of the elementwise primitives, written once. An implementation's function, with its own target attribute,
// inlines them, and the compiler vectorizes them for that target.
#pragma once

#include <cstring>

#include "core/base/bits.h"
#include "core/base/float_types.h"
#include "core/masks/philox.h"
#include "core/masks/progressive.h"
#include "core/masks/refresh_mask.h"
#include "core/product/bit_planes.h"
#include "core/product/epilogue.h"
#include "core/product/packed_weight.h"
#include "core/signs/pack.h"

#define STOMPP_INLINE __attribute__((always_inline)) inline

// Defines, in an implementation's namespace, the primitives that are nothing but the bodies below under its target.
#define STOMPP_ELEMENTWISE_PRIMITIVES(target)                                                                        \
  target void count_taps(const TapBlock& block) { elementwise::count_taps(block); }                                  \
  target void compare_planes(const PlaneComparison& comparison) { elementwise::compare_planes(comparison); }         \
  target void planes_to_dots(const uint32_t* planes, int plane_count, int64_t words, int32_t start, int32_t* dots) { \
    elementwise::planes_to_dots(planes, plane_count, words, start, dots);                                            \
  }                                                                                                                  \
  target void affine(const Epilogue& epilogue, const Dots& dots) { elementwise::affine(epilogue, dots); }            \
  target void pack_planes(const Planes& planes, int64_t begin, int64_t end) {                                        \
    elementwise::pack_planes(planes, begin, end);                                                                    \
  }                                                                                                                  \
  target void unpack_row(const uint32_t* words, FloatType type, int64_t K, void* out) {                              \
    elementwise::unpack_row(words, type, K, out);                                                                    \
  }                                                                                                                  \
  target void progressive_forward(const ProgressiveRow& row) { elementwise::forward(row); }                          \
  target void progressive_backward(const ProgressiveRow& row) { elementwise::backward(row); }                        \
  target void gate_backward(const GateRow& row) { elementwise::gate_backward(row); }                                 \
  target void refresh_words(const RefreshMask& refresh, uint32_t* words, int64_t begin, int64_t end) {               \
    elementwise::refresh_words(refresh, words, begin, end);                                                          \
  }

namespace stompp {
namespace elementwise {

// `count` entries from `first` on, of which bit i of `frozen` says whether entry i is. Called with a constant count for
// whole words. Loads and stores are loops of their own around local arrays: the buffers might alias, and only so can
// the arithmetic between be vectorized.
template <class Type, bool kGate>
STOMPP_INLINE void forward_word(const ProgressiveRow& row, int64_t first, uint32_t frozen, int count) {
  using Float = typename Type::Compute;
  Float u[kWordBits], result[kWordBits];
  for (int i = 0; i < count; ++i) u[i] = Type::load(row.u, first + i);
  if (kGate) {
    uint32_t inside = 0;
    for (int i = 0; i < count; ++i) {
      const Float magnitude = u[i] < Float(0) ? -u[i] : u[i];
      inside |= magnitude <= Float(1) ? uint32_t{1} << i : 0u;
    }
    const uint32_t committed = row.surrogate == Surrogate::kNone       ? 0
                               : row.surrogate == Surrogate::kIdentity ? 0xffffffffu
                                                                       : inside;
    const uint32_t gate = row.surrogate == Surrogate::kApproxSign ? frozen : (frozen & committed) | (~frozen & inside);
    row.gate[first / kWordBits] = gate & valid_bits(count, 0);
  }
  for (int i = 0; i < count; ++i) {
    const Float sign = u[i] < Float(0) ? Float(-1) : Float(1);
    const Float low = u[i] < Float(-1) ? Float(-1) : u[i];  // NaN fails both comparisons and stays
    const Float clip = low > Float(1) ? Float(1) : low;
    result[i] = (frozen >> i & 1u) != 0 ? sign : clip;
  }
  for (int i = 0; i < count; ++i) Type::store(row.out, first + i, result[i]);
}

template <class Type, Surrogate kSurrogate>
STOMPP_INLINE void backward_word(const ProgressiveRow& row, int64_t first, uint32_t frozen, int count) {
  using Float = typename Type::Compute;
  Float u[kWordBits], grad[kWordBits], result[kWordBits];
  for (int i = 0; i < count; ++i) u[i] = Type::load(row.u, first + i);
  for (int i = 0; i < count; ++i) grad[i] = Type::load(row.grad, first + i);
  for (int i = 0; i < count; ++i) {
    const Float magnitude = u[i] < Float(0) ? -u[i] : u[i];
    const Float clipped = magnitude <= Float(1) ? grad[i] : Float(0);
    Float committed = Float(0);
    if (kSurrogate == Surrogate::kIdentity) committed = grad[i];
    if (kSurrogate == Surrogate::kClip) committed = clipped;
    if (kSurrogate == Surrogate::kApproxSign) {
      const Float scaled = grad[i] * (Float(2) - Float(2) * magnitude);
      committed = magnitude <= Float(1) ? scaled : Float(0);
    }
    result[i] = (frozen >> i & 1u) != 0 ? committed : clipped;
  }
  for (int i = 0; i < count; ++i) Type::store(row.out, first + i, result[i]);
}

// Words in the registers of whatever target the body is compiled for. gcc unrolls loops over small arrays before it
// vectorizes them, and then does not.
using Words = uint32_t __attribute__((vector_size(32)));
using FourWords = uint32_t __attribute__((vector_size(16)));

template <class V>
STOMPP_INLINE void load_difference(const TapBlock& block, int64_t tap, int64_t first, V* difference) {
  V weights;
  std::memcpy(difference, block.x[tap] + first, sizeof(V));
  std::memcpy(&weights, block.weights[tap] + first, sizeof(V));
  *difference ^= weights;
}

// Adds the bits of b and c to those of `sum` and leaves the carries in b.
template <class V>
STOMPP_INLINE void carry_save(V* sum, V* b, const V& c) {
  const V half = *sum ^ *b;
  *b = (*sum & *b) | (half & c);
  *sum = half ^ c;
}

// Adds bits of value 2^kFirst to the planes; `carry` is used up.
template <int kFirst, int kPlanes, class V>
STOMPP_INLINE void add_bits(V* carry, V (&planes)[kPlanes]) {
#pragma GCC unroll 8
  for (int p = kFirst; p < kPlanes; ++p) {
    const V both = planes[p] & *carry;
    planes[p] ^= *carry;
    *carry = both;
  }
}

// Adds up the taps of a V of words from `first` on: four taps at a time, whose carries meet before they go up.
template <int kPlanes, class V>
STOMPP_INLINE void count_step(const TapBlock& block, int64_t first) {
  V planes[kPlanes];
#pragma GCC unroll 8
  for (int p = 0; p < kPlanes; ++p) planes[p] = V{};
  int64_t tap = 0;
  for (; tap + 4 <= block.taps; tap += 4) {
    V differ[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) load_difference(block, tap + i, first, &differ[i]);
    carry_save(&planes[0], &differ[0], differ[1]);
    carry_save(&planes[0], &differ[2], differ[3]);
    carry_save(&planes[1], &differ[0], differ[2]);
    add_bits<2>(&differ[0], planes);
  }
  for (; tap < block.taps; ++tap) {
    V differ;
    load_difference(block, tap, first, &differ);
    add_bits<0>(&differ, planes);
  }
#pragma GCC unroll 8
  for (int p = 0; p < kPlanes; ++p)
    if (p < block.plane_count) std::memcpy(block.planes + p * kPlaneWords + first, &planes[p], sizeof(V));
}

template <int kPlanes>
STOMPP_INLINE void count_taps(const TapBlock& block) {
  int64_t first = 0;
  for (; first + 8 <= block.words; first += 8) count_step<kPlanes, Words>(block, first);
  for (; first + 4 <= block.words; first += 4) count_step<kPlanes, FourWords>(block, first);
  for (; first < block.words; ++first) count_step<kPlanes, uint32_t>(block, first);
}

// Depthwise kernels up to 3x3, up to 7x7, groups up to 3x3 of 8, and any.
STOMPP_INLINE void count_taps(const TapBlock& block) {
  if (block.plane_count <= 4) return count_taps<4>(block);
  if (block.plane_count <= 6) return count_taps<6>(block);
  if (block.plane_count <= 8) return count_taps<8>(block);
  count_taps<kMaxPlanes>(block);
}

STOMPP_INLINE void compare_planes(const PlaneComparison& c) {
  for (int64_t j = 0; j < c.words; ++j) c.at_least[j] = 0xffffffffu;
  for (int p = 0; p < c.plane_count; ++p) {
    const uint32_t* counts = c.planes + p * kPlaneWords;
    const uint32_t* limits = c.limits + p * kPlaneWords;
    uint32_t* __restrict at_least = c.at_least;
    // A higher bit decides where it differs, else what the lower ones decided stands.
    for (int64_t j = 0; j < c.words; ++j)
      at_least[j] = (counts[j] & ~limits[j]) | (~(counts[j] ^ limits[j]) & at_least[j]);
  }
}

STOMPP_INLINE void planes_to_dots(const uint32_t* planes, int plane_count, int64_t words, int32_t start,
                                  int32_t* dots) {
  const Words lanes = {0, 1, 2, 3, 4, 5, 6, 7}, first = Words{} + static_cast<uint32_t>(start);
  for (int64_t j = 0; j < words; ++j, dots += kWordBits) {
    Words counts[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) counts[i] = Words{};
    for (int p = plane_count - 1; p >= 0; --p) {
      const Words word = Words{} + planes[p * kPlaneWords + j];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        counts[i] = counts[i] + counts[i] + (word >> (lanes + 8u * static_cast<uint32_t>(i)) & 1u);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Words result = first - (counts[i] + counts[i]);
      std::memcpy(dots + 8 * i, &result, sizeof(result));
    }
  }
}

// Whether element i is below zero.
template <class Type>
STOMPP_INLINE bool is_negative(const void* x, int64_t i) {
  return is_negative16<Type>(load16(x, i));
}

template <>
STOMPP_INLINE bool is_negative<Float32>(const void* x, int64_t i) {
  return Float32::load(x, i) < 0.0f;
}

// Words of `count` neighbouring pixels from `pixel` on: bit k of word w is that of plane 32 w + k.
template <class Type>
STOMPP_INLINE void pack_pixels(const Planes& planes, int64_t pixel, int count) {
  for (int64_t w = 0; w < words_for(planes.K); ++w) {
    const int64_t left = planes.K - w * kWordBits;
    const int bits = left < kWordBits ? static_cast<int>(left) : kWordBits;
    uint32_t words[kPlanePixels] = {};
    for (int k = 0; k < bits; ++k) {
      const int64_t plane = (w * kWordBits + k) * planes.stride + pixel;
      if (planes.limits.low == nullptr) {
        for (int i = 0; i < count; ++i) words[i] |= static_cast<uint32_t>(is_negative<Type>(planes.x, plane + i)) << k;
        continue;
      }
      const float low = planes.limits.low[w * kWordBits + k], high = planes.limits.high[w * kWordBits + k];
      for (int i = 0; i < count; ++i) {
        const float value = Type::load(planes.x, plane + i);
        words[i] |= static_cast<uint32_t>((value < low) | (value > high)) << k;
      }
    }
    for (int i = 0; i < count; ++i) planes.words[(pixel + i) * words_for(planes.K) + w] = words[i];
  }
}

// `count` values from `first` on, of a type that is not fp64.
STOMPP_INLINE void load_floats(const void* x, FloatType type, int64_t first, int64_t count, float* values) {
  if (type == FloatType::kFloat32)
    for (int64_t i = 0; i < count; ++i) values[i] = Float32::load(x, first + i);
  else if (type == FloatType::kFloat16)
    for (int64_t i = 0; i < count; ++i) values[i] = Float16::load(x, first + i);
  else
    for (int64_t i = 0; i < count; ++i) values[i] = BFloat16::load(x, first + i);
}

STOMPP_INLINE uint32_t outside_word(const void* x, FloatType type, const Limits& limits, int64_t first, int64_t count) {
  float values[kWordBits];
  load_floats(x, type, first, count, values);
  uint32_t word = 0;
  for (int64_t i = 0; i < count; ++i)
    word |= static_cast<uint32_t>((values[i] < limits.low[first + i]) | (values[i] > limits.high[first + i])) << i;
  return word;
}

STOMPP_INLINE void pack_outside(const void* x, FloatType type, const Limits& limits, int64_t K, uint32_t* words) {
  for (int64_t i = 0; i < words_for(K); ++i) {
    const int64_t left = K - i * kWordBits;
    words[i] = outside_word(x, type, limits, i * kWordBits, left < kWordBits ? left : kWordBits);
  }
}

template <class Type>
STOMPP_INLINE void pack_planes(const Planes& planes, int64_t begin, int64_t end) {
  for (int64_t pixel = begin; pixel < end; pixel += kPlanePixels) {
    const int64_t left = end - pixel;
    pack_pixels<Type>(planes, pixel, left < kPlanePixels ? static_cast<int>(left) : kPlanePixels);
  }
}

STOMPP_INLINE void pack_planes(const Planes& planes, int64_t begin, int64_t end) {
  if (planes.type == FloatType::kFloat32) return pack_planes<Float32>(planes, begin, end);
  if (planes.type == FloatType::kFloat16) return pack_planes<Float16>(planes, begin, end);
  pack_planes<BFloat16>(planes, begin, end);
}

template <class Type>
STOMPP_INLINE void unpack_word(void* out, int64_t first, uint32_t word, int count) {
  using Float = typename Type::Compute;
  for (int i = 0; i < count; ++i) Type::store(out, first + i, (word >> i & 1u) != 0 ? Float(-1) : Float(1));
}

// The 32 random words of the entries of mask word `index`, against two limits.
STOMPP_INLINE void random_below(const RandomStream& stream, int64_t index, uint64_t limit, uint64_t other_limit,
                                uint32_t* below, uint32_t* below_other) {
  constexpr int kGroups = static_cast<int>(kWordBits) / 4;
  *below = *below_other = 0;
  for (int group = 0; group < kGroups; ++group) {
    uint32_t random[4] = {static_cast<uint32_t>(index * kGroups + group), static_cast<uint32_t>(stream.seed >> 32),
                          static_cast<uint32_t>(stream.step), static_cast<uint32_t>(stream.step >> 32)};
    philox4x32_10(random, static_cast<uint32_t>(stream.seed), stream.tensor_id);
    for (int lane = 0; lane < 4; ++lane) {
      *below |= static_cast<uint32_t>(random[lane] < limit) << (group * 4 + lane);
      *below_other |= static_cast<uint32_t>(random[lane] < other_limit) << (group * 4 + lane);
    }
  }
}

STOMPP_INLINE uint32_t frozen_word(const ProgressiveRow& row, int64_t index) {
  if (row.drawn != nullptr) {
    const uint64_t limit = row.drawn->one_below;
    uint32_t frozen, same;
    random_below(row.drawn->stream, row.first_word + index, limit, limit, &frozen, &same);
    return frozen;
  }
  return row.mask == nullptr ? 0xffffffffu : row.mask[index];
}

template <class Type, bool kGate>
STOMPP_INLINE void forward(const ProgressiveRow& row) {
  const int64_t whole = row.count / kWordBits;
  for (int64_t w = 0; w < whole; ++w) forward_word<Type, kGate>(row, w * kWordBits, frozen_word(row, w), kWordBits);
  const int tail = static_cast<int>(row.count % kWordBits);
  if (tail != 0) forward_word<Type, kGate>(row, whole * kWordBits, frozen_word(row, whole), tail);
}

template <class Type>
STOMPP_INLINE void forward(const ProgressiveRow& row) {
  row.gate == nullptr ? forward<Type, false>(row) : forward<Type, true>(row);
}

// A gradient is copied bit for bit, or is 0: integers of the type's size do.
template <class Bits>
STOMPP_INLINE void gate_word(const GateRow& row, int64_t first, uint32_t gate, int count) {
  Bits grad[kWordBits], result[kWordBits];
  const size_t bytes = static_cast<size_t>(count) * sizeof(Bits);
  std::memcpy(grad, static_cast<const char*>(row.grad) + first * static_cast<int64_t>(sizeof(Bits)), bytes);
  for (int i = 0; i < count; ++i) result[i] = (gate >> i & 1u) != 0 ? grad[i] : Bits{0};
  std::memcpy(static_cast<char*>(row.out) + first * static_cast<int64_t>(sizeof(Bits)), result, bytes);
}

template <class Bits>
STOMPP_INLINE void gate_backward(const GateRow& row) {
  const int64_t whole = row.count / kWordBits;
  for (int64_t w = 0; w < whole; ++w) gate_word<Bits>(row, w * kWordBits, row.gate[w], kWordBits);
  const int tail = static_cast<int>(row.count % kWordBits);
  if (tail != 0) gate_word<Bits>(row, whole * kWordBits, row.gate[whole], tail);
}

STOMPP_INLINE void gate_backward(const GateRow& row) {
  switch (size_of(row.type)) {
    case 2:
      return gate_backward<uint16_t>(row);
    case 4:
      return gate_backward<uint32_t>(row);
    default:
      return gate_backward<uint64_t>(row);
  }
}

template <class Type, Surrogate kSurrogate>
STOMPP_INLINE void backward(const ProgressiveRow& row) {
  const int64_t whole = row.count / kWordBits;
  for (int64_t w = 0; w < whole; ++w)
    backward_word<Type, kSurrogate>(row, w * kWordBits, frozen_word(row, w), kWordBits);
  const int tail = static_cast<int>(row.count % kWordBits);
  if (tail != 0) backward_word<Type, kSurrogate>(row, whole * kWordBits, frozen_word(row, whole), tail);
}

template <class Type>
STOMPP_INLINE void unpack_row(const uint32_t* words, int64_t K, void* out) {
  const int64_t whole = K / kWordBits;
  for (int64_t w = 0; w < whole; ++w) unpack_word<Type>(out, w * kWordBits, words[w], kWordBits);
  const int tail = static_cast<int>(K % kWordBits);
  if (tail != 0) unpack_word<Type>(out, whole * kWordBits, words[whole], tail);
}

STOMPP_INLINE void unpack_row(const uint32_t* words, FloatType type, int64_t K, void* out) {
  switch (type) {
    case FloatType::kFloat32:
      return unpack_row<Float32>(words, K, out);
    case FloatType::kFloat16:
      return unpack_row<Float16>(words, K, out);
    case FloatType::kBFloat16:
      return unpack_row<BFloat16>(words, K, out);
    case FloatType::kFloat64:
      return unpack_row<Float64>(words, K, out);
  }
}

template <class Type>
STOMPP_INLINE void backward(const ProgressiveRow& row) {
  switch (row.surrogate) {
    case Surrogate::kNone:
      return backward<Type, Surrogate::kNone>(row);
    case Surrogate::kIdentity:
      return backward<Type, Surrogate::kIdentity>(row);
    case Surrogate::kClip:
      return backward<Type, Surrogate::kClip>(row);
    case Surrogate::kApproxSign:
      return backward<Type, Surrogate::kApproxSign>(row);
  }
}

STOMPP_INLINE void forward(const ProgressiveRow& row) {
  switch (row.type) {
    case FloatType::kFloat32:
      return forward<Float32>(row);
    case FloatType::kFloat16:
      return forward<Float16>(row);
    case FloatType::kBFloat16:
      return forward<BFloat16>(row);
    case FloatType::kFloat64:
      return forward<Float64>(row);
  }
}

STOMPP_INLINE void backward(const ProgressiveRow& row) {
  switch (row.type) {
    case FloatType::kFloat32:
      return backward<Float32>(row);
    case FloatType::kFloat16:
      return backward<Float16>(row);
    case FloatType::kBFloat16:
      return backward<BFloat16>(row);
    case FloatType::kFloat64:
      return backward<Float64>(row);
  }
}

STOMPP_INLINE void refresh_words(const RefreshMask& refresh, uint32_t* words, int64_t begin, int64_t end) {
  for (int64_t w = begin; w < end; ++w) {
    uint32_t ones, redrawn;
    random_below(refresh.stream, w, refresh.one_below, refresh.redraw_below, &ones, &redrawn);
    words[w] = ((words[w] & ~redrawn) | ones) & valid_bits(refresh.n, w);
  }
}

template <bool kFused>
STOMPP_INLINE float multiply_add(float x, float scale, float bias) {
  return kFused ? __builtin_fmaf(x, scale, bias) : x * scale + bias;
}

// Adds the residual of `count` outputs from n on, the first of which is element `first`.
template <class Type, bool kFused>
STOMPP_INLINE void add_residual(const Epilogue& e, int64_t first, int64_t n, int count, float* y) {
  if (e.residual_scale == nullptr) {
    for (int i = 0; i < count; ++i) y[i] += static_cast<float>(Type::load(e.residual, first + i));
    return;
  }
  const float *scale = e.residual_scale + n, *bias = e.residual_bias + n;
  for (int i = 0; i < count; ++i)
    y[i] += multiply_add<kFused>(static_cast<float>(Type::load(e.residual, first + i)), scale[i], bias[i]);
}

// The affine values of `count` outputs of a row from n on.
template <bool kFused>
STOMPP_INLINE void affine_values(const Epilogue& e, int64_t first, int64_t n, const int32_t* acc, int count, float* y) {
  const float *scale = e.scale + n, *bias = e.bias + n;
  for (int i = 0; i < count; ++i) y[i] = multiply_add<kFused>(static_cast<float>(acc[i]), scale[i], bias[i]);
  if (e.residual == nullptr) return;
  switch (e.residual_type) {
    case FloatType::kFloat32:
      return add_residual<Float32, kFused>(e, first, n, count, y);
    case FloatType::kFloat16:
      return add_residual<Float16, kFused>(e, first, n, count, y);
    case FloatType::kBFloat16:
      return add_residual<BFloat16, kFused>(e, first, n, count, y);
    case FloatType::kFloat64:
      return add_residual<Float64, kFused>(e, first, n, count, y);
  }
}

template <class Type>
STOMPP_INLINE void store_elements(const float* y, int count, void* out, int64_t first) {
  for (int i = 0; i < count; ++i) Type::store(out, first + i, y[i]);
}

// `count` outputs of a row from n on.
STOMPP_INLINE void affine_panel(const Epilogue& e, int64_t row, int64_t n, const int32_t* acc, int count) {
  const int64_t first = row * e.N + n;
  float y[kPanelOutputs];
  if (e.fused)
    affine_values<true>(e, first, n, acc, count, y);
  else
    affine_values<false>(e, first, n, acc, count, y);
  if (e.sign_words != nullptr) {
    uint32_t bits = 0;
    for (int i = 0; i < count; ++i) bits |= y[i] < 0.0f ? 1u << i : 0u;
    const int64_t shift = n % kWordBits;
    const bool whole_word = shift == 0 && (count == kWordBits || n + count == e.N);
    put_bits(e.sign_words + row * words_for(e.N) + n / kWordBits, shift, whole_word, count, bits);
    if (e.out == nullptr) return;
  }
  switch (e.out_type) {
    case FloatType::kFloat32:
      return store_elements<Float32>(y, count, e.out, first);
    case FloatType::kFloat16:
      return store_elements<Float16>(y, count, e.out, first);
    case FloatType::kBFloat16:
      return store_elements<BFloat16>(y, count, e.out, first);
    case FloatType::kFloat64:
      return store_elements<Float64>(y, count, e.out, first);
  }
}

STOMPP_INLINE void affine(const Epilogue& e, const Dots& dots) {
  constexpr int kWhole = static_cast<int>(kPanelOutputs);
  for (int64_t r = 0; r < dots.rows; ++r) {
    const int64_t row = dots.first_row + r, whole = dots.count / kWhole * kWhole;
    const int32_t* acc = dots.values + r * dots.stride;
    for (int64_t i = 0; i < whole; i += kWhole) affine_panel(e, row, dots.n + i, acc + i, kWhole);
    const int tail = static_cast<int>(dots.count - whole);
    if (tail != 0) affine_panel(e, row, dots.n + whole, acc + whole, tail);
  }
}

template <class Type>
STOMPP_INLINE uint32_t sign_word(const void* x, int64_t first, int64_t count) {
  uint32_t word = 0;
  for (int64_t i = 0; i < count; ++i) word |= static_cast<uint32_t>(is_negative<Type>(x, first + i)) << i;
  return word;
}

STOMPP_INLINE uint32_t sign_word(const void* x, FloatType type, int64_t first, int64_t count) {
  if (type == FloatType::kFloat32) return sign_word<Float32>(x, first, count);
  if (type == FloatType::kFloat16) return sign_word<Float16>(x, first, count);
  return sign_word<BFloat16>(x, first, count);
}

template <class Type>
STOMPP_INLINE void pack_row(const void* x, int64_t K, uint32_t* words) {
  for (int64_t i = 0; i < words_for(K); ++i) {
    const int64_t left = K - i * kWordBits;
    words[i] = sign_word<Type>(x, i * kWordBits, left < kWordBits ? left : kWordBits);
  }
}

}  // namespace elementwise
}  // namespace stompp
