// Bodies of the signed sums that the compiler vectorizes for the target of the function that they are inlined into; see
// elementwise.h. Signs of 32 outputs are expanded once for some rows, then each product is an XOR and an addition.
#pragma once

#include <cstring>

#include "core/bits.h"
#include "core/elementwise.h"
#include "core/packed_weight.h"
#include "core/signed_sum.h"

// Defines, in an implementation's namespace, the primitives that are nothing but the bodies below under its target.
#define STOMPP_SIGNED_SUM_PRIMITIVES(target)                                                                      \
  [[maybe_unused]] target void prepare_floats(const float* x, int64_t inputs, int64_t, float* prepared) {         \
    signed_sum::prepare_floats(x, inputs, prepared);                                                              \
  }                                                                                                               \
  [[maybe_unused]] target void add_up_floats(const SignedSumBlock& block) { signed_sum::add_up_floats(block); }   \
  target void prepare_channels(const float* x, int64_t inputs, int64_t turns, float* prepared) {                  \
    signed_sum::prepare_channels(x, inputs, turns, prepared);                                                     \
  }                                                                                                               \
  target void add_up_channels(const SignedSumBlock& block) { signed_sum::add_up_channels(block); }                \
  target void widen(const void* x, FloatType type, int64_t count, float* out) {                                   \
    signed_sum::widen(x, type, count, out);                                                                       \
  }                                                                                                               \
  target void scale_sums(const float* sums, const float* scale, const float* bias, int64_t count, FloatType type, \
                         void* out) {                                                                             \
    signed_sum::scale_sums(sums, scale, bias, count, type, out);                                                  \
  }

namespace stompp {
namespace signed_sum {

using Floats = float __attribute__((vector_size(32)));
using Signs = uint32_t __attribute__((vector_size(32)));
constexpr int64_t kLanes = 8;
constexpr int kVectors = kPanelOutputs / kLanes;

// Of 32 inputs of a panel, or taps of a word of channels: bit 31 is set where the weight is -1.
struct ExpandedSigns {
  Signs of[kWordBits][kVectors];
};

// The sums of one row, in registers.
struct PanelSums {
  Floats of[kVectors];
};

STOMPP_INLINE void load_sums(const float* from, PanelSums* sums) { std::memcpy(sums, from, sizeof(*sums)); }
STOMPP_INLINE void store_sums(const PanelSums& sums, float* to) { std::memcpy(to, &sums, sizeof(sums)); }

STOMPP_INLINE void add_turned(const Floats& x, const Signs& signs, Floats* sum) {
  *sum += reinterpret_cast<Floats>(reinterpret_cast<Signs>(x) ^ signs);
}

STOMPP_INLINE void clear_sums(const SignedSumBlock& block) {
  for (int64_t r = 0; r < block.row_count; ++r)
    std::memset(block.sums + r * block.stride, 0, static_cast<size_t>(block.panel_count * kPanelOutputs * 4));
}

STOMPP_INLINE void prepare_floats(const float* x, int64_t inputs, float* prepared) {
  std::memcpy(prepared, x, static_cast<size_t>(inputs) * sizeof(float));
  std::memset(prepared + inputs, 0, static_cast<size_t>(round_up(inputs, kWordBits) - inputs) * sizeof(float));
}

// One word of inputs of 32 outputs.
STOMPP_INLINE void expand_inputs(const uint32_t* words, int64_t inputs, ExpandedSigns* signs) {
  Signs bits[kVectors];
  std::memcpy(bits, words, sizeof(bits));
  for (int64_t k = 0; k < inputs; ++k)
    for (int v = 0; v < kVectors; ++v) {
      signs->of[k][v] = bits[v] << 31;
      bits[v] >>= 1;
    }
}

// Adds `inputs` inputs of tap `tap` of the block to the sums of a panel.
STOMPP_INLINE void add_inputs(const SignedSumBlock& block, int64_t tap, int64_t word, int64_t inputs,
                              const ExpandedSigns& signs, float* out) {
  for (int64_t r = 0; r < block.row_count; ++r, out += block.stride) {
    const float* x = block.rows[tap * block.row_count + r] + word * kWordBits;
    PanelSums sums;
    load_sums(out, &sums);
    for (int64_t k = 0; k < inputs; ++k) {
      const Floats same = Floats{} + x[k];
      for (int v = 0; v < kVectors; ++v) add_turned(same, signs.of[k][v], &sums.of[v]);
    }
    store_sums(sums, out);
  }
}

STOMPP_INLINE void add_up_floats(const SignedSumBlock& block) {
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

// A word of channels for each turn: its output c reads the channel that stands at c.
STOMPP_INLINE void prepare_channels(const float* x, int64_t inputs, int64_t turns, float* prepared) {
  float channels[kPanelOutputs] = {};
  std::memcpy(channels, x, static_cast<size_t>(inputs) * sizeof(float));
  std::memcpy(prepared, channels, sizeof(channels));
  for (int64_t turn = 1; turn < turns; ++turn)
    for (int64_t c = 0; c < kPanelOutputs; ++c)
      prepared[turn * kPanelOutputs + c] = channels[(c & -turns) | ((c + turn) & (turns - 1))];
}

STOMPP_INLINE void expand_channels(const uint32_t* words, const int32_t* taps, int64_t count, ExpandedSigns* signs) {
  uint32_t shifts[kPanelOutputs];
  Signs left[kVectors];
  for (int64_t c = 0; c < kPanelOutputs; ++c) shifts[c] = static_cast<uint32_t>(31 - c);
  std::memcpy(left, shifts, sizeof(left));
  for (int64_t t = 0; t < count; ++t)
    for (int v = 0; v < kVectors; ++v) signs->of[t][v] = ((Signs{} + words[taps[t]]) << left[v]) & 0x80000000u;
}

// A product for each channel and tap, where add_up_floats has one for each output and input.
STOMPP_INLINE void add_up_channels(const SignedSumBlock& block) {
  clear_sums(block);
  ExpandedSigns signs;
  for (int64_t turn = 0; turn < block.turns; ++turn)
    for (int64_t first = 0; first < block.tap_count; first += kWordBits) {
      const int64_t left = block.tap_count - first, count = left < kWordBits ? left : kWordBits;
      expand_channels(block.panels + turn * block.panel_taps, block.taps + first, count, &signs);
      for (int64_t r = 0; r < block.row_count; ++r) {
        const float* const* rows = block.rows + first * block.row_count + r;
        PanelSums sums, x;
        load_sums(block.sums + r * block.stride, &sums);
        for (int64_t t = 0; t < count; ++t) {
          load_sums(rows[t * block.row_count] + turn * kPanelOutputs, &x);
          for (int v = 0; v < kVectors; ++v) add_turned(x.of[v], signs.of[t][v], &sums.of[v]);
        }
        store_sums(sums, block.sums + r * block.stride);
      }
    }
}

STOMPP_INLINE void widen(const void* x, FloatType type, int64_t count, float* out) {
  if (type == FloatType::kFloat16)
    for (int64_t i = 0; i < count; ++i) out[i] = Float16::load(x, i);
  else
    for (int64_t i = 0; i < count; ++i) out[i] = BFloat16::load(x, i);
}

template <class Type>
STOMPP_INLINE void scale_as(const float* sums, const float* scale, const float* bias, int64_t count, void* out) {
  // Through a local array: the buffers might alias, and only so is the arithmetic vectorized.
  float y[kPanelOutputs];
  for (int64_t first = 0; first < count; first += kPanelOutputs) {
    const int64_t some = count - first < kPanelOutputs ? count - first : kPanelOutputs;
    for (int64_t i = 0; i < some; ++i) y[i] = sums[first + i] * scale[first + i];
    if (bias != nullptr)
      for (int64_t i = 0; i < some; ++i) y[i] = y[i] + bias[first + i];
    for (int64_t i = 0; i < some; ++i) Type::store(out, first + i, y[i]);
  }
}

STOMPP_INLINE void scale_sums(const float* sums, const float* scale, const float* bias, int64_t count, FloatType type,
                              void* out) {
  if (type == FloatType::kFloat32) return scale_as<Float32>(sums, scale, bias, count, out);
  if (type == FloatType::kFloat16) return scale_as<Float16>(sums, scale, bias, count, out);
  scale_as<BFloat16>(sums, scale, bias, count, out);
}

}  // namespace signed_sum
}  // namespace stompp
