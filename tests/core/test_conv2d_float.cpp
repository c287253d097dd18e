// Float convolutions against plain loops of std::fma, to the bit.
#include <cmath>
#include <cstring>
#include <string>

#include "check.h"
#include "core/base/float_types.h"
#include "core/float_conv/bf16_block.h"
#include "core/float_conv/conv2d_float.h"
#include "core/float_conv/winograd_weight.h"

namespace stompp {
namespace {

using test::Buffer;
using test::pool;
using test::Random;

struct Convolution {
  Convolution(const Conv2dShape& conv, const WeightShape& weight)
      : shape(conv),
        w(weight),
        OH(conv.out_height(weight)),
        OW(conv.out_width(weight)),
        x(conv.batch * conv.height * conv.width * conv.channels),
        words(conv.batch * conv.height * conv.width * words_for(conv.channels)),
        weights(ceil_div(weight.out_channels, kPanelOutputs) * weight.K() * kPanelOutputs),
        first(weight.out_channels),
        second(weight.out_channels),
        sums(conv.batch * OH * OW * weight.out_channels) {}

  void fill(Random& random, bool bits) {
    for (int64_t i = 0; i < x.size; ++i) {
      x[i] = bits ? random.sign() : random.uniform();
      const int64_t pixel = i / shape.channels, channel = i % shape.channels;
      if (bits && x[i] < 0)
        words[pixel * words_for(shape.channels) + channel / kWordBits] |= 1u << (channel % kWordBits);
    }
    for (int64_t i = 0; i < weights.size; ++i)
      weights[i] =
          i / (w.K() * kPanelOutputs) * kPanelOutputs + i % kPanelOutputs < w.out_channels ? random.uniform() : 0.0f;
    for (int64_t i = 0; i < w.out_channels; ++i) first[i] = random.uniform(), second[i] = random.uniform();
    add_up();
  }

  void add_up() {
    for (int64_t i = 0; i < sums.size; ++i)
      sums[i] = expected(i / w.out_channels / OW / OH, i / w.out_channels / OW % OH, i / w.out_channels % OW,
                         i % w.out_channels);
  }

  float expected(int64_t n, int64_t oh, int64_t ow, int64_t o) {
    float sum = 0;
    for (int64_t kh = 0; kh < w.kernel_h; ++kh)
      for (int64_t kw = 0; kw < w.kernel_w; ++kw) {
        const int64_t h = oh * shape.stride_h - shape.padding_h + kh * shape.dilation_h;
        const int64_t v = ow * shape.stride_w - shape.padding_w + kw * shape.dilation_w;
        if (h < 0 || h >= shape.height || v < 0 || v >= shape.width) continue;
        for (int64_t c = 0; c < w.in_channels; ++c) {
          const int64_t k = (kh * w.kernel_w + kw) * w.in_channels + c;
          const int64_t at = (o / kPanelOutputs * w.K() + k) * kPanelOutputs + o % kPanelOutputs;
          sum = std::fma(x[((n * shape.height + h) * shape.width + v) * shape.channels + c], weights[at], sum);
        }
      }
    return sum;
  }

  FloatConv conv(bool bits) {
    FloatConv result = {};
    result.x = bits ? nullptr : x.get();
    result.words = bits ? words.get() : nullptr;
    result.weights = weights.get();
    return result;
  }

  void check_floats(bool bits, bool scaled, bool fused, int threads, const std::string& name) {
    Buffer<float> out(sums.size);
    FloatConv arguments = conv(bits);
    arguments.out = out.get();
    arguments.fused = fused;
    if (scaled) arguments.scale = first.get(), arguments.bias = second.get();
    const Status status = conv2d_float(arguments, shape, w, pool(threads));
    CHECK(status.is_ok(), status.message());
    for (int64_t i = 0; i < out.size; ++i) {
      const int64_t o = i % w.out_channels;
      float wanted = sums[i];
      if (scaled && fused) wanted = std::fma(wanted, first[o], second[o]);
      if (scaled && !fused) {
        wanted = wanted * first[o];
        wanted = wanted + second[o];
      }
      CHECK(out[i] == wanted, name + ", output " + std::to_string(i));
    }
  }

  void check_bits(bool bits, int threads, const std::string& name) {
    const int64_t row = words_for(w.out_channels);
    Buffer<uint32_t> out(shape.batch * OH * OW * row);
    FloatConv arguments = conv(bits);
    arguments.limits = {first.get(), second.get()};
    arguments.out_words = out.get();
    const Status status = conv2d_float(arguments, shape, w, pool(threads));
    CHECK(status.is_ok(), status.message());
    for (int64_t i = 0; i < out.size * kWordBits; ++i) {
      const int64_t pixel = i / (row * kWordBits), o = i % (row * kWordBits);
      const float sum = o < w.out_channels ? sums[pixel * w.out_channels + o] : 0.0f;
      const bool wanted = o < w.out_channels && (sum < first[o] || sum > second[o]);
      CHECK((out[i / kWordBits] >> (i % kWordBits) & 1u) == (wanted ? 1u : 0u), name + ", bit " + std::to_string(i));
    }
  }

  Conv2dShape shape;
  WeightShape w;
  int64_t OH, OW;
  Buffer<float> x;
  Buffer<uint32_t> words;
  Buffer<float> weights, first, second, sums;
};

TEST(float_convolutions_are_chains_of_fused_multiply_adds) {
  Random random(77);
  int done = 0;
  for (int round = 0; round < 100; ++round) {
    const auto some = [&](int64_t low, int64_t high) { return random.between(low, high); };
    const bool single = some(0, 2) == 0;
    const WeightShape w = {some(1, 70), some(1, 40), single ? 1 : some(1, 4), single ? 1 : some(1, 4), 1};
    const Conv2dShape shape = {some(1, 2), some(1, 7), some(1, 20), w.in_channels, some(1, 3), some(1, 3),
                               some(0, 2), some(0, 2), some(1, 2),  some(1, 2),    0};
    if (!check_conv2d(shape, w).is_ok()) continue;
    ++done;
    const bool bits = some(0, 1) == 1;
    Convolution convolution(shape, w);
    convolution.fill(random, bits);
    const std::string name = "round " + std::to_string(round);
    const int threads = static_cast<int>(some(1, 3));
    convolution.check_floats(bits, false, false, threads, name);
    convolution.check_floats(bits, true, some(0, 1) == 1, threads, name + ", scaled");
    convolution.check_bits(bits, threads, name);
  }
  CHECK(done > 33, "shapes that fit");
}

// Limits that are sums of some pixels, or next to them, are what Winograd's rounding cannot tell from those sums.
TEST(bits_by_winograd_are_those_of_the_chain) {
  Random random(78);
  int done = 0;
  for (int round = 0; round < 6; ++round) {
    const auto some = [&](int64_t low, int64_t high) { return random.between(low, high); };
    const int64_t stride = some(1, 3), height = some(2 * stride + 1, 4 * stride);
    const WeightShape w = {some(1, 40), some(1, 5), height, some(2, 6), 1};
    const Conv2dShape shape = {some(1, 2),
                               stride * some(14, 30),
                               some(50, 80),
                               w.in_channels,
                               stride,
                               some(1, 2),
                               some(0, 3),
                               some(0, 3),
                               1,
                               1,
                               0};
    if (!check_conv2d(shape, w).is_ok() || !winograd::pays(shape, w)) continue;
    ++done;
    Convolution convolution(shape, w);
    convolution.fill(random, false);
    const int64_t pixels = convolution.sums.size / w.out_channels;
    const bool loud = some(0, 1) == 1;  // a few inputs are so large that all others are lost beside them
    for (int64_t i = 0; loud && i < convolution.x.size; ++i) convolution.x[i] *= some(0, 500) == 0 ? 0x1p14f : 0x1p-3f;
    if (loud) convolution.add_up();
    for (int64_t o = 0; o < w.out_channels; ++o) {
      const float sum = convolution.sums[some(0, pixels - 1) * w.out_channels + o], infinity = HUGE_VALF;
      const float limits[] = {sum, std::nextafter(sum, infinity), std::nextafter(sum, -infinity), infinity, -infinity};
      const float limit = limits[some(0, 29) == 0 ? some(3, 4) : some(0, 2)];
      const bool low = some(0, 1) == 1;
      convolution.first[o] = low ? limit : -infinity;
      convolution.second[o] = low ? infinity : limit;
    }
    convolution.check_bits(false, static_cast<int>(some(1, 3)), "round " + std::to_string(round));
  }
  CHECK(done >= 2, "shapes that pay, of which " + std::to_string(done));
}

// What has no bounds, or is not worth computing them, is not left to Winograd.
TEST(winograd_weights_say_whether_they_are_usable) {
  const WeightShape w = {2, 3, 7, 7, 1};
  const Conv2dShape shape = {1, 224, 224, 3, 2, 2, 3, 3, 1, 1, 0};
  CHECK(winograd::pays(shape, w), "a first layer");
  CHECK(!winograd::pays({1, 32, 32, 3, 1, 1, 1, 1, 1, 1, 0}, {64, 3, 3, 3, 1}), "few products");
  CHECK(!winograd::pays({1, 224, 224, 3, 2, 2, 3, 3, 2, 1, 0}, w), "dilation");
  CHECK(!winograd::pays({1, 60, 60, 3, 2, 2, 3, 3, 1, 1, 0}, w), "a small image");
  const float infinity = HUGE_VALF, nan = std::nanf("");
  Buffer<float> weights(w.K() * kPanelOutputs), low(kPanelOutputs), high(kPanelOutputs);
  const auto usable = [&] {
    return winograd::Weight(weights.get(), shape, w, {low.get(), high.get()}, pool(1)).usable();
  };
  for (int64_t n = 0; n < kPanelOutputs; ++n) low[n] = -infinity, high[n] = infinity;
  CHECK(usable(), "no limits");
  low[1] = 0;
  CHECK(usable(), "a lower limit");
  high[1] = 1;
  CHECK(!usable(), "two limits");
  low[1] = nan;
  CHECK(usable(), "a limit that is not a number is none");
  high[1] = -infinity;
  CHECK(usable(), "everything is outside");
  for (const float weight : {infinity, nan, 3e38f}) {
    weights[5 * kPanelOutputs] = weight;
    CHECK(!usable(), "weights that are not finite, or nearly");
  }
}

// Steps of weights in bfloat16, and as the floats that they stand for.
void round_weights(Convolution& c, int64_t parts, Buffer<uint16_t>& rounded) {
  const int64_t K = c.w.K(), steps = ceil_div(K, kBf16Step);
  for (int64_t i = 0; i < c.weights.size; ++i) {
    const int64_t panel = i / (K * kPanelOutputs), k = i / kPanelOutputs % K, n = i % kPanelOutputs;
    const int64_t step = (panel * steps + k / kBf16Step) * parts;
    float rest = c.weights[i];
    for (int64_t part = 0; part < parts; ++part) {
      const uint16_t value = float_to_bfloat16(rest);
      rounded[(step + part) * kBf16PartWeights + (k % kBf16Step / 2 * kPanelOutputs + n) * 2 + k % 2] = value;
      rest -= bfloat16_to_float(value);
    }
    c.weights[i] -= rest;
  }
}

// Inputs are bfloat16 already, and so few and small that their sums differ by little more than their last bits.
TEST(bf16_convolutions_are_within_rounding) {
  Random random(79);
  int done = 0;
  for (int round = 0; round < 25; ++round) {
    const auto some = [&](int64_t low, int64_t high) { return random.between(low, high); };
    const bool single = some(0, 2) == 0;
    const WeightShape w = {some(1, 70), some(1, 70), single ? 1 : some(1, 4), single ? 1 : some(1, 7), 1};
    const Conv2dShape shape = {some(1, 3), some(1, 7), some(1, 40), w.in_channels, some(1, 3), some(1, 3),
                               some(0, 2), some(0, 3), some(1, 2),  some(1, 2),    0};
    if (!check_conv2d(shape, w).is_ok()) continue;
    ++done;
    const bool bits = some(0, 1) == 1;
    const int64_t parts = some(1, 2);
    Convolution c(shape, w);
    c.fill(random, bits);
    for (int64_t i = 0; i < c.x.size; ++i) c.x[i] = bfloat16_to_float(float_to_bfloat16(c.x[i]));
    Buffer<uint16_t> rounded(ceil_div(w.out_channels, kPanelOutputs) * ceil_div(w.K(), kBf16Step) * parts *
                             kBf16PartWeights);
    round_weights(c, parts, rounded);
    c.add_up();
    FloatConv conv = c.conv(bits);
    conv.weights = nullptr;
    conv.bf16_weights = rounded.get();
    conv.bf16_parts = parts;
    const std::string name = "round " + std::to_string(round);
    const float tolerance = 1e-6f * static_cast<float>(w.K() + 8);
    Buffer<float> out(c.sums.size);
    conv.out = out.get();
    const bool scaled = some(0, 1) == 1;
    if (scaled) conv.scale = c.first.get(), conv.bias = c.second.get();
    CHECK(conv2d_float(conv, shape, w, pool(static_cast<int>(some(1, 3)))).is_ok(), name);
    for (int64_t i = 0; i < out.size; ++i) {
      const int64_t o = i % w.out_channels;
      const float wanted = scaled ? c.sums[i] * c.first[o] + c.second[o] : c.sums[i];
      CHECK(std::fabs(out[i] - wanted) <= tolerance, name + ", output " + std::to_string(i));
    }
    const int64_t row = words_for(w.out_channels);
    Buffer<uint32_t> words(c.sums.size / w.out_channels * row);
    conv.out = nullptr;
    conv.scale = conv.bias = nullptr;
    conv.limits = {c.first.get(), c.second.get()};
    conv.out_words = words.get();
    CHECK(conv2d_float(conv, shape, w, pool(static_cast<int>(some(1, 3)))).is_ok(), name);
    for (int64_t i = 0; i < words.size * kWordBits; ++i) {
      const int64_t pixel = i / (row * kWordBits), o = i % (row * kWordBits);
      const bool bit = (words[i / kWordBits] >> (i % kWordBits) & 1u) != 0;
      if (o >= w.out_channels) {
        CHECK(!bit, name + ", a bit behind the last output");
        continue;
      }
      const float sum = c.sums[pixel * w.out_channels + o];
      if (std::fabs(sum - c.first[o]) <= tolerance || std::fabs(sum - c.second[o]) <= tolerance) continue;
      CHECK(bit == (sum < c.first[o] || sum > c.second[o]), name + ", bit " + std::to_string(i));
    }
  }
  CHECK(done > 7, "shapes that fit");
}

// A sum lies next to the middle between two floats: rounded to double and then to float it would be rounded to even.
TEST(sums_are_rounded_once) {
  const WeightShape w = {32, 2, 1, 1, 1};
  Convolution c({1, 1, 1, 2, 1, 1, 0, 0, 1, 1, 0}, w);
  const float half = 1.0f + 0x1p-12f;  // its square is 1 + 2^-11 + 2^-24
  for (const float scale : {1.0f, -1.0f, 0x1p-63f, 0x1p-70f}) {
    c.x[0] = 0x1p-40f * scale;
    c.x[1] = half * scale;
    for (int64_t o = 0; o < 32; ++o) {
      c.weights[o] = (o % 2 == 0 ? 0x1p-40f : -0x1p-40f) * scale;
      c.weights[32 + o] = (o % 3 == 0 ? half : -half) * scale;
    }
    c.add_up();
    c.check_floats(false, false, false, 1, "scale " + std::to_string(scale));
  }
}

// Rounding each of K products on its own moves a sum by less than K units in the last place of 1.
TEST(unfused_sums_are_within_rounding) {
  Random random(80);
  for (int round = 0; round < 20; ++round) {
    const WeightShape w = {random.between(1, 70), random.between(1, 40), 3, random.between(1, 3), 1};
    const Conv2dShape shape = {1, 3, random.between(3, 20), w.in_channels, 1, 1, 1, 1, 1, 1, 0};
    Convolution c(shape, w);
    c.fill(random, false);
    Buffer<float> out(c.sums.size);
    FloatConv conv = c.conv(false);
    conv.unfused_sums = true;
    conv.out = out.get();
    const std::string name = "round " + std::to_string(round);
    CHECK(conv2d_float(conv, shape, w, pool(1)).is_ok(), name);
    const float tolerance = 1e-7f * static_cast<float>(w.K() + 8);
    for (int64_t i = 0; i < out.size; ++i)
      CHECK(std::fabs(out[i] - c.sums[i]) <= tolerance, name + ", output " + std::to_string(i));
  }
}

TEST(float_convolutions_refuse_groups) {
  const WeightShape w = {4, 2, 1, 1, 2};
  const Status status = conv2d_float({}, {1, 1, 1, 4, 1, 1, 0, 0, 1, 1, 0}, w, pool(1));
  CHECK(!status.is_ok(), "two groups");
}

}  // namespace
}  // namespace stompp
