// The core against loops that anyone can check, without torch. Buffers are exactly as long as they must be, so that a
// sanitizer sees a read or write past the end.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "check.h"
#include "core/isa/dispatch.h"
#include "core/masks/progressive.h"
#include "core/masks/refresh_mask.h"
#include "core/product/bconv2d.h"
#include "core/product/bgemm.h"
#include "core/signs/pack.h"

namespace stompp {
namespace {

using test::Buffer;
using test::pool;
using test::Random;

bool bit(const uint32_t* row, int64_t i) { return (row[i / 32] >> (i % 32) & 1) != 0; }

void fill_signs(Buffer<float>& values, Random& random) {
  for (int64_t i = 0; i < values.size; ++i) values[i] = random.sign();
}

Buffer<uint32_t> pack(Buffer<float>& values, int64_t K) {
  Buffer<uint32_t> words(values.size / K * words_for(K));
  CHECK(pack_signs(values.get(), FloatType::kFloat32, values.size / K, K, {}, words.get(), pool(2)).is_ok(), "pack");
  return words;
}

Buffer<uint8_t> pack_weight(Buffer<uint32_t>& words, const WeightShape& shape) {
  const WeightLayout& layout = active_implementation()->product->layout;
  Buffer<uint8_t> packed(packed_bytes(shape, layout));
  CHECK(pack_weight_words(words.get(), shape, layout, packed.get(), pool(2)).is_ok(), "pack_weight_words");
  return packed;
}

PackedWeight view(Buffer<uint8_t>& packed, const WeightShape& shape) {
  PackedWeight weight = {};
  const Status status = view_packed(packed.get(), packed.size, shape, &weight);
  CHECK(status.is_ok(), status.message());
  return weight;
}

TEST(packing_takes_signs_and_zeroes_tails) {
  Random random(1);
  for (int64_t K : {1, 31, 32, 33, 64, 100, 257}) {
    Buffer<float> x(3 * K);
    for (int64_t i = 0; i < x.size; ++i) x[i] = random.uniform();
    x[0] = -0.0f;
    x[x.size - 1] = std::nanf("");
    Buffer<uint32_t> words = pack(x, K);
    for (int64_t r = 0; r < 3; ++r)
      for (int64_t k = 0; k < words_for(K) * 32; ++k) {
        const bool expected = k < K && x[r * K + k] < 0.0f;
        CHECK(bit(words.get() + r * words_for(K), k) == expected, "bit " + std::to_string(k));
      }
    Buffer<float> back(3 * K);
    CHECK(unpack_signs(words.get(), 3, K, back.get(), FloatType::kFloat32, pool(1)).is_ok(), "unpack");
    for (int64_t i = 0; i < x.size; ++i) CHECK(back[i] == (x[i] < 0.0f ? -1.0f : 1.0f), "unpacked sign");
  }
}

TEST(values_outside_limits_are_ones) {
  Random random(6);
  for (int64_t K : {1, 31, 32, 33, 100}) {
    Buffer<float> x(3 * K), low(K), high(K);
    Buffer<uint32_t> words(3 * words_for(K));
    for (int64_t i = 0; i < x.size; ++i) x[i] = random.uniform();
    for (int64_t i = 0; i < K; ++i) low[i] = random.uniform(), high[i] = random.uniform();
    x[0] = std::nanf("");
    const Limits limits = {low.get(), high.get()};
    CHECK(pack_signs(x.get(), FloatType::kFloat32, 3, K, limits, words.get(), pool(2)).is_ok(), "pack");
    for (int64_t i = 0; i < 3 * K; ++i) {
      const bool wanted = x[i] < low[i % K] || x[i] > high[i % K];
      CHECK(bit(words.get() + i / K * words_for(K), i % K) == wanted, "element " + std::to_string(i));
    }
  }
}

TEST(packed_weights_come_back) {
  Random random(2);
  for (const WeightShape& shape :
       {WeightShape{1, 1, 1, 1, 1}, {33, 65, 1, 1, 1}, {12, 40, 3, 2, 3}, {64, 1, 3, 3, 64}}) {
    Buffer<float> w(shape.out_channels * shape.K());
    fill_signs(w, random);
    Buffer<uint32_t> words = pack(w, shape.in_channels);
    Buffer<uint8_t> packed = pack_weight(words, shape);
    Buffer<uint32_t> back(words.size);
    CHECK(unpack_weight_words(view(packed, shape), back.get(), pool(1)).is_ok(), "unpack");
    CHECK(std::equal(words.get(), words.get() + words.size, back.get()), "portable words");
    for (int64_t cut : {0, 1, 63, 64}) {
      PackedWeight weight = {};
      const int64_t bytes = cut == 64 ? packed.size - 1 : cut;
      CHECK(!view_packed(packed.get(), bytes, shape, &weight).is_ok(), "a short weight is refused");
    }
  }
}

TEST(bgemm_equals_the_sum_of_products) {
  Random random(3);
  for (int round = 0; round < 60; ++round) {
    const int64_t M = random.between(1, 70), N = random.between(1, 140), K = random.between(1, round < 50 ? 400 : 5000);
    Buffer<float> a(M * K), w(N * K);
    fill_signs(a, random);
    fill_signs(w, random);
    const WeightShape shape = {N, K, 1, 1, 1};
    Buffer<uint32_t> a_words = pack(a, K), w_words = pack(w, K);
    Buffer<uint8_t> packed = pack_weight(w_words, shape);
    Buffer<int32_t> out(M * N);
    Epilogue epilogue;
    epilogue.N = N;
    epilogue.out = out.get();
    CHECK(bgemm(a_words.get(), M, view(packed, shape), epilogue, pool(round % 5 + 1)).is_ok(), "bgemm");
    for (int64_t m = 0; m < M; ++m)
      for (int64_t n = 0; n < N; ++n) {
        float sum = 0;
        for (int64_t k = 0; k < K; ++k) sum += a[m * K + k] * w[n * K + k];
        CHECK(out[m * N + n] == static_cast<int32_t>(sum),
              "M N K " + std::to_string(M) + " " + std::to_string(N) + " " + std::to_string(K));
      }
  }
}

TEST(counters_hold_the_largest_counts) {
  // All products -1: every popcount is K, the most that 8- and 16-bit counters can meet.
  for (int64_t K : {8 * 31, 8 * 31 + 1, 32760, 65472, 65473, 2 * 65472 + 17}) {
    for (int64_t M : {1, 5, 9}) {
      Buffer<uint32_t> a(M * words_for(K)), w(40 * words_for(K));
      for (int64_t n = 0; n < 40; ++n)
        for (int64_t i = 0; i < words_for(K); ++i) w[n * words_for(K) + i] = valid_bits(K, i);
      const WeightShape shape = {40, K, 1, 1, 1};
      Buffer<uint8_t> packed = pack_weight(w, shape);
      Buffer<int32_t> out(M * 40);
      Epilogue epilogue;
      epilogue.N = 40;
      epilogue.out = out.get();
      CHECK(bgemm(a.get(), M, view(packed, shape), epilogue, pool(1)).is_ok(), "bgemm");
      for (int64_t i = 0; i < out.size; ++i) CHECK(out[i] == -K, "K " + std::to_string(K));
    }
  }
}

// Everything one random convolution needs, and its sums by plain loops.
struct Convolution {
  explicit Convolution(Random& random)
      : shape{random.between(1, 3),
              random.between(1, 9),
              random.between(1, 9),
              0,
              random.between(1, 3),
              random.between(1, 3),
              random.between(0, 3),
              random.between(0, 3),
              random.between(1, 2),
              random.between(1, 2),
              static_cast<int>(random.between(-1, 1))} {
    const int64_t groups = random.between(0, 2) == 0 ? random.between(1, 4) : 1;
    weight_shape = {groups * random.between(1, 45), random.between(1, 70), random.between(1, 5), random.between(1, 5),
                    groups};
    if (random.between(0, 3) == 0) {  // kernels of their own
      const int64_t in_group = int64_t{1} << random.between(0, 3), many = random.between(2, 50);
      weight_shape = {many * in_group, in_group, weight_shape.kernel_h, weight_shape.kernel_w, many};
    }
    if (random.between(0, 3) == 0) {  // pixels of whole 64-bit words, in lines of any length
      weight_shape = {groups * random.between(1, 40), 64 * random.between(1, 2), random.between(1, 3),
                      random.between(1, 3), groups};
      shape.width = random.between(1, 40);
    }
    shape.channels = weight_shape.in_channels * weight_shape.groups;
  }

  Convolution(const Conv2dShape& shape, const WeightShape& weight_shape) : shape(shape), weight_shape(weight_shape) {}

  bool valid() const { return check_conv2d(shape, weight_shape).is_ok(); }
  int64_t out_height() const { return shape.out_height(weight_shape); }
  int64_t out_width() const { return shape.out_width(weight_shape); }
  int64_t rows() const { return shape.batch * out_height() * out_width(); }

  std::vector<int32_t> sums(Buffer<float>& x, Buffer<float>& w) const {
    std::vector<int32_t> result;
    const int64_t group_outputs = weight_shape.group_outputs();
    for (int64_t row = 0; row < rows(); ++row)
      for (int64_t o = 0; o < weight_shape.out_channels; ++o) {
        const int64_t n = row / (out_height() * out_width()), oh = row / out_width() % out_height(),
                      ow = row % out_width();
        float sum = 0;
        for (int64_t kh = 0; kh < weight_shape.kernel_h; ++kh)
          for (int64_t kw = 0; kw < weight_shape.kernel_w; ++kw)
            for (int64_t c = 0; c < weight_shape.in_channels; ++c) {
              const int64_t h = oh * shape.stride_h - shape.padding_h + kh * shape.dilation_h;
              const int64_t v = ow * shape.stride_w - shape.padding_w + kw * shape.dilation_w;
              const bool inside = h >= 0 && h < shape.height && v >= 0 && v < shape.width;
              const int64_t channel = o / group_outputs * weight_shape.in_channels + c;
              const float value = inside ? x[((n * shape.height + h) * shape.width + v) * shape.channels + channel]
                                         : static_cast<float>(shape.padding_value);
              const int64_t tap = kh * weight_shape.kernel_w + kw;
              sum += value * w[(o * weight_shape.taps() + tap) * weight_shape.in_channels + c];
            }
        result.push_back(static_cast<int32_t>(sum));
      }
    return result;
  }

  Conv2dShape shape;
  WeightShape weight_shape;
};

TEST(bconv2d_and_its_epilogues_equal_plain_loops) {
  Random random(4);
  for (int round = 0; round < 150; ++round) {
    const Convolution conv(random);
    if (!conv.valid()) continue;
    const int64_t O = conv.weight_shape.out_channels, M = conv.rows();
    Buffer<float> x(conv.shape.batch * conv.shape.height * conv.shape.width * conv.shape.channels);
    Buffer<float> w(O * conv.weight_shape.K());
    fill_signs(x, random);
    fill_signs(w, random);
    Buffer<uint32_t> x_words = pack(x, conv.shape.channels), w_words = pack(w, conv.weight_shape.in_channels);
    Buffer<uint8_t> packed = pack_weight(w_words, conv.weight_shape);
    const PackedWeight weight = view(packed, conv.weight_shape);
    const std::vector<int32_t> expected = conv.sums(x, w);
    const std::string name = "round " + std::to_string(round);

    Buffer<int32_t> out(M * O);
    Epilogue epilogue;
    epilogue.N = O;
    epilogue.out = out.get();
    CHECK(bconv2d(x_words.get(), conv.shape, weight, epilogue, pool(2)).is_ok(), "bconv2d");
    CHECK(std::equal(expected.begin(), expected.end(), out.get()), name);

    Buffer<float> scale(O), bias(O), residual(M * O), floats(M * O);
    for (int64_t n = 0; n < O; ++n) scale[n] = random.uniform(), bias[n] = random.uniform();
    for (int64_t i = 0; i < M * O; ++i) residual[i] = random.uniform();
    epilogue.kind = Epilogue::Kind::kAffine;
    epilogue.scale = scale.get();
    epilogue.bias = bias.get();
    epilogue.residual = round % 2 == 0 ? residual.get() : nullptr;
    epilogue.out = floats.get();
    epilogue.fused = round % 3 == 0;
    CHECK(bconv2d(x_words.get(), conv.shape, weight, epilogue, pool(3)).is_ok(), "bconv2d");
    for (int64_t i = 0; i < M * O; ++i) {
      const float acc = static_cast<float>(expected[i]);
      volatile float product = acc * scale[i % O];  // volatile: rounded, not contracted
      volatile float sum = epilogue.fused ? std::fmaf(acc, scale[i % O], bias[i % O]) : product + bias[i % O];
      CHECK(floats[i] == (round % 2 == 0 ? sum + residual[i] : sum), name + " affine");
    }
    Buffer<uint32_t> below_zero(M * words_for(O));
    epilogue.sign_words = below_zero.get();
    epilogue.out = nullptr;
    CHECK(bconv2d(x_words.get(), conv.shape, weight, epilogue, pool(3)).is_ok(), "bconv2d");
    for (int64_t m = 0; m < M; ++m)
      for (int64_t n = 0; n < words_for(O) * 32; ++n)
        CHECK(bit(below_zero.get() + m * words_for(O), n) == (n < O && floats[m * O + n] < 0.0f), name + " signs");
    Buffer<float> rprelu(3 * O), limits(2 * O), bent(M * O);
    for (int64_t i = 0; i < 3 * O; ++i) rprelu[i] = random.uniform();
    for (int64_t n = 0; n < O; ++n) limits[n] = -1.0f, limits[O + n] = random.uniform();
    epilogue.rprelu = rprelu.get();
    epilogue.limits = limits.get();
    epilogue.out = bent.get();
    CHECK(bconv2d(x_words.get(), conv.shape, weight, epilogue, pool(3)).is_ok(), "bconv2d");
    for (int64_t i = 0; i < M * O; ++i) {
      const int64_t n = i % O;
      volatile float t = floats[i] + rprelu[n];
      volatile float product = t * rprelu[O + n];
      volatile float y = (t > 0.0f ? t : product) + rprelu[2 * O + n];
      CHECK(bent[i] == y, name + " RPReLU");
      CHECK(bit(below_zero.get() + i / O * words_for(O), n) == (y < limits[n] || y > limits[O + n]), name + " limits");
    }
    epilogue.rprelu = epilogue.limits = nullptr;
    epilogue.sign_words = nullptr;

    Buffer<int32_t> thresholds(2 * O);
    for (int64_t i = 0; i < 2 * O; ++i) thresholds[i] = static_cast<int32_t>(random.between(-20, 20));
    Buffer<uint32_t> flips(words_for(O)), signs(M * words_for(O)), bits(M * words_for(O));
    for (int64_t i = 0; i < flips.size; ++i) flips[i] = static_cast<uint32_t>(random.next()) & valid_bits(O, i);
    for (int64_t i = 0; i < signs.size; ++i)
      signs[i] = static_cast<uint32_t>(random.next()) & valid_bits(O, i % words_for(O));
    epilogue.kind = Epilogue::Kind::kThreshold;
    epilogue.thresholds = thresholds.get();
    epilogue.flip_words = flips.get();
    epilogue.residual_words = round % 2 == 0 ? signs.get() : nullptr;
    epilogue.out = bits.get();
    CHECK(bconv2d(x_words.get(), conv.shape, weight, epilogue, pool(4)).is_ok(), "bconv2d");
    for (int64_t m = 0; m < M; ++m)
      for (int64_t n = 0; n < words_for(O) * 32; ++n) {
        bool wanted = false;
        if (n < O) {
          const bool second = round % 2 == 0 && bit(signs.get() + m * words_for(O), n);
          wanted = (expected[m * O + n] < thresholds[n + (second ? O : 0)]) != bit(flips.get(), n);
        }
        CHECK(bit(bits.get() + m * words_for(O), n) == wanted, name + " threshold");
      }
  }
}

TEST(every_image_of_a_batch_is_its_own) {
  Random random(7);
  for (int64_t width : {7, 20, 33}) {
    const Convolution conv({4, 6, width, 64, 1, 1, 1, 1, 1, 1, 0}, {40, 64, 3, 3, 1});
    Buffer<float> x(4 * 6 * width * 64), w(40 * conv.weight_shape.K());
    fill_signs(x, random);
    fill_signs(w, random);
    Buffer<uint32_t> x_words = pack(x, 64), w_words = pack(w, 64);
    Buffer<uint8_t> packed = pack_weight(w_words, conv.weight_shape);
    Buffer<int32_t> out(conv.rows() * 40);
    Epilogue epilogue;
    epilogue.N = 40;
    epilogue.out = out.get();
    CHECK(bconv2d(x_words.get(), conv.shape, view(packed, conv.weight_shape), epilogue, pool(1)).is_ok(), "bconv2d");
    const std::vector<int32_t> expected = conv.sums(x, w);
    CHECK(std::equal(expected.begin(), expected.end(), out.get()), "width " + std::to_string(width));
  }
}

TEST(progressive_follows_its_formula) {
  Random random(5);
  for (int64_t n : {1, 31, 32, 33, 8191, 8193}) {
    const int64_t batch = 3;
    Buffer<float> u(batch * n), grad(batch * n), out(batch * n);
    Buffer<uint32_t> mask(words_for(n));
    for (int64_t i = 0; i < u.size; ++i) u[i] = 2.0f * random.uniform(), grad[i] = random.uniform();
    u[0] = -0.0f;
    for (int64_t i = 0; i < mask.size; ++i) mask[i] = static_cast<uint32_t>(random.next()) & valid_bits(n, i);
    Progressive args = {u.get(), nullptr, out.get(), FloatType::kFloat32, batch, n, mask.get(), Surrogate::kApproxSign};
    CHECK(progressive_forward(args, pool(2)).is_ok(), "forward");
    for (int64_t i = 0; i < u.size; ++i) {
      const float sign = u[i] < 0 ? -1.0f : 1.0f, clip = std::min(1.0f, std::max(-1.0f, u[i]));
      CHECK(out[i] == (bit(mask.get(), i % n) ? sign : clip), "forward " + std::to_string(i));
    }
    Buffer<uint32_t> gate(batch * words_for(n));
    args.gate = gate.get();
    args.surrogate = Surrogate::kClip;
    CHECK(progressive_forward(args, pool(2)).is_ok(), "forward with a gate");
    CHECK(gate_backward({grad.get(), gate.get(), out.get(), FloatType::kFloat32, batch, n}, pool(2)).is_ok(), "gate");
    for (int64_t i = 0; i < u.size; ++i)
      CHECK(out[i] == (std::fabs(u[i]) <= 1.0f ? grad[i] : 0.0f), "gate " + std::to_string(i));
    // One row whose mask is drawn: a refresh of everything draws the same bits.
    RefreshMask refresh = {};
    Buffer<uint32_t> drawn(words_for(n));
    CHECK(make_refresh(n, 0.25, 1.0, 7, 1, 1, &refresh).is_ok(), "arguments");
    CHECK(refresh_mask(refresh, drawn.get(), pool(2)).is_ok(), "refresh");
    const DrawnMask draw = {refresh.one_below, refresh.stream};
    Progressive one_row = args;
    one_row.batch = 1;
    one_row.surrogate = Surrogate::kApproxSign;
    one_row.drawn = &draw;
    CHECK(progressive_forward(one_row, pool(2)).is_ok(), "forward with a drawn mask");
    for (int64_t i = 0; i < drawn.size; ++i) CHECK(gate[i] == drawn[i], "drawn mask " + std::to_string(i));
    args.surrogate = Surrogate::kApproxSign;
    args.gate = nullptr;
    args.grad = grad.get();
    CHECK(progressive_backward(args, pool(2)).is_ok(), "backward");
    for (int64_t i = 0; i < u.size; ++i) {
      const float inside = std::fabs(u[i]) <= 1.0f ? 1.0f : 0.0f;
      const float frozen = grad[i] * (2.0f - 2.0f * std::fabs(u[i]));
      CHECK(out[i] == inside * (bit(mask.get(), i % n) ? frozen : grad[i]), "backward " + std::to_string(i));
    }
  }
}

TEST(refresh_draws_at_its_rate) {
  const int64_t n = 100003;
  Buffer<uint32_t> mask(words_for(n));
  RefreshMask refresh = {};
  CHECK(make_refresh(n, 0.25, 4.0, 7, 1, 1, &refresh).is_ok(), "arguments");
  CHECK(refresh_mask(refresh, mask.get(), pool(2)).is_ok(), "refresh");
  int64_t ones = 0;
  for (int64_t i = 0; i < mask.size; ++i) ones += popcount32(mask[i]);
  CHECK(std::llabs(ones - n / 16) < 500, "a quarter is redrawn, a quarter of it set: " + std::to_string(ones));
  CHECK((mask[mask.size - 1] & ~valid_bits(n, mask.size - 1)) == 0, "the tail stays 0");
  CHECK(!make_refresh(n, 1.5, 4.0, 7, 1, 1, &refresh).is_ok(), "p above 1 is refused");
  CHECK(!make_refresh(n, 0.5, 0.5, 7, 1, 1, &refresh).is_ok(), "r below 1 is refused");
}

// Counts null members of a table that holds nothing but functions.
template <class Table>
int64_t missing_kernels(const Table& table) {
  using Kernel = void (*)();
  static_assert(sizeof(Table) % sizeof(Kernel) == 0, "a table of pointers");
  Kernel kernels[sizeof(Table) / sizeof(Kernel)];
  std::memcpy(kernels, &table, sizeof(table));
  return std::count(std::begin(kernels), std::end(kernels), nullptr);
}

bool is_filled(const SignedSumKernel& kernel) {
  return kernel.rows > 0 && kernel.word_floats > 0 && kernel.prepare != nullptr && kernel.add_up != nullptr;
}

TEST(every_table_of_kernels_is_filled) {
  const Implementation& implementation = *active_implementation();
  const ProductKernels& product = *implementation.product;
  CHECK(product.less_than != nullptr && product.affine != nullptr, "product");
  CHECK(product.blocks.multiply != nullptr || product.tiles.multiply != nullptr, "product");
  CHECK(missing_kernels(*implementation.planes) == 0, "planes");
  CHECK(missing_kernels(*implementation.signs) == 0, "signs");
  CHECK(missing_kernels(*implementation.masks) == 0, "masks");
  const SignedSumKernels& sums = *implementation.signed_sums;
  const ChannelSumKernel& channels = sums.channels;
  CHECK(is_filled(sums.sums), "signed_sums");
  CHECK(channels.lanes > 0 && channels.prepare != nullptr && channels.add_up != nullptr, "signed_sums");
  CHECK(sums.widen != nullptr && sums.scale_sums != nullptr, "signed_sums");
  const FloatConvKernels& float_conv = *implementation.float_conv;
  const FloatTileKernel& tiles = float_conv.tiles;
  CHECK(tiles.pixels > 0 && tiles.multiply != nullptr && tiles.compare != nullptr, "float_conv");
  CHECK(missing_kernels(float_conv.winograd) == 0, "float_conv");
  const Bf16Kernels& bf16 = float_conv.bf16;
  const bool has_rows = bf16.round != nullptr && bf16.expand != nullptr && bf16.gather != nullptr;
  CHECK(bf16.multiply == nullptr || (has_rows && bf16.finish != nullptr && bf16.compare != nullptr), "bf16");
}

TEST(unknown_implementations_are_refused) {
  CHECK(!select_implementation("bogus").is_ok(), "bogus");
  CHECK(active_implementation() != nullptr, "the active one stays");
}

}  // namespace
}  // namespace stompp
