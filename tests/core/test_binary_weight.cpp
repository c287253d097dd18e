// Products of floats with binary weights against plain loops. Inputs are small integers, whose sums every order of the
// additions gets right to the bit.
#include <string>

#include "check.h"
#include "core/binary_weight/binary_weight.h"
#include "core/isa/dispatch.h"
#include "core/signs/pack.h"

namespace stompp {
namespace {

using test::Buffer;
using test::pool;
using test::Random;

struct Product {
  Product(const Conv2dShape& conv, const WeightShape& weight)
      : shape(conv),
        w(weight),
        x(conv.batch * conv.height * conv.width * conv.channels),
        signs(weight.out_channels * weight.K()),
        scale(weight.out_channels),
        bias(weight.out_channels),
        packed(packed_bytes(weight, kFloatInputLayout)) {}

  void fill(Random& random) {
    for (int64_t i = 0; i < x.size; ++i) x[i] = static_cast<float>(random.between(-9, 9));
    for (int64_t i = 0; i < signs.size; ++i) signs[i] = random.sign();
    for (int64_t i = 0; i < w.out_channels; ++i) scale[i] = random.uniform(), bias[i] = random.uniform();
    Buffer<uint32_t> words(signs.size / w.in_channels * words_for(w.in_channels));
    const int64_t rows = signs.size / w.in_channels;
    CHECK(pack_signs(signs.get(), FloatType::kFloat32, rows, w.in_channels, {}, words.get(), pool(1)).is_ok(), "signs");
    CHECK(pack_weight_words(words.get(), w, kFloatInputLayout, packed.get(), pool(1)).is_ok(), "pack");
    Buffer<uint32_t> back(words.size);
    CHECK(unpack_weight_words(view(), back.get(), pool(1)).is_ok(), "unpack");
    for (int64_t i = 0; i < words.size; ++i) CHECK(back[i] == words[i], "portable word " + std::to_string(i));
  }

  PackedWeight view() {
    PackedWeight weight = {};
    const Status status = view_packed(packed.get(), packed.size, w, &weight);
    CHECK(status.is_ok(), status.message());
    return weight;
  }

  float expected(int64_t n, int64_t oh, int64_t ow, int64_t o) {
    float sum = 0;
    for (int64_t kh = 0; kh < w.kernel_h; ++kh)
      for (int64_t kw = 0; kw < w.kernel_w; ++kw) {
        const int64_t h = oh * shape.stride_h - shape.padding_h + kh * shape.dilation_h;
        const int64_t v = ow * shape.stride_w - shape.padding_w + kw * shape.dilation_w;
        if (h < 0 || h >= shape.height || v < 0 || v >= shape.width) continue;
        for (int64_t c = 0; c < w.in_channels; ++c) {
          const int64_t channel = o / w.group_outputs() * w.in_channels + c;
          sum += x[((n * shape.height + h) * shape.width + v) * shape.channels + channel] *
                 signs[((o * w.kernel_h + kh) * w.kernel_w + kw) * w.in_channels + c];
        }
      }
    const float scaled = sum * scale[o];
    return scaled + bias[o];
  }

  void check(int threads, const std::string& name) {
    const int64_t OH = shape.out_height(w), OW = shape.out_width(w);
    Buffer<float> out(shape.batch * OH * OW * w.out_channels);
    const FloatProduct product = {x.get(), out.get(), FloatType::kFloat32, scale.get(), bias.get()};
    const Status status = conv2d_binary_weight(product, shape, view(), pool(threads));
    CHECK(status.is_ok(), status.message());
    for (int64_t i = 0; i < out.size; ++i) {
      const int64_t o = i % w.out_channels, pixel = i / w.out_channels;
      const float wanted = expected(pixel / OW / OH, pixel / OW % OH, pixel % OW, o);
      CHECK(out[i] == wanted, name + ", output " + std::to_string(i));
    }
  }

  Conv2dShape shape;
  WeightShape w;
  Buffer<float> x, signs, scale, bias;
  Buffer<uint8_t> packed;
};

TEST(floats_with_binary_weights_equal_plain_loops) {
  Random random(11);
  for (int round = 0; round < 150; ++round) {
    const auto some = [&](int64_t low, int64_t high) { return random.between(low, high); };
    const int64_t groups = some(0, 2) == 0 ? some(2, 4) : 1;
    WeightShape w = {groups * some(1, 70), some(1, 70), some(1, 4), some(1, 4), groups};
    if (some(0, 3) == 0) {  // words of channels
      const int64_t in_group = int64_t{1} << some(0, 3), many = some(2, 50);
      w = {many * in_group, in_group, w.kernel_h, w.kernel_w, many};
    }
    const Conv2dShape shape = {some(1, 2),
                               some(1, 9),
                               some(1, 20),
                               w.in_channels * w.groups,
                               some(1, 3),
                               some(1, 3),
                               some(0, 3),
                               some(0, 3),
                               some(1, 2),
                               some(1, 2),
                               0};
    if (!check_conv2d(shape, w).is_ok()) continue;
    Product product(shape, w);
    product.fill(random);
    for (int threads : {1, 3}) product.check(threads, "round " + std::to_string(round));
  }
}

// Channels that fill vectors are multiplied where they lie: no tile may read or write beyond the last one's.
TEST(depthwise_floats_with_binary_weights_equal_plain_loops) {
  Random random(14);
  for (const int64_t channels : {4, 8, 12, 16, 24, 32, 40, 48, 64, 72, 80, 96, 112, 144})
    for (int round = 0; round < 4; ++round) {
      const auto some = [&](int64_t low, int64_t high) { return random.between(low, high); };
      const WeightShape w = {channels, 1, some(1, 5), some(1, 5), channels};
      const Conv2dShape shape = {some(1, 2), some(1, 7), some(1, 40), channels,   some(1, 2), some(1, 3),
                                 some(0, 3), some(0, 4), some(1, 2),  some(1, 3), 0};
      if (!check_conv2d(shape, w).is_ok()) continue;
      Product product(shape, w);
      product.fill(random);
      const std::string name = std::to_string(channels) + " channels, round " + std::to_string(round);
      for (int threads : {1, 3}) product.check(threads, name);
    }
}

TEST(matrices_of_floats_with_binary_weights_equal_plain_loops) {
  Random random(12);
  for (int round = 0; round < 60; ++round) {
    const int64_t M = random.between(1, 40), N = random.between(1, 150), K = random.between(1, 300);
    Product product({1, 1, M, K, 1, 1, 0, 0, 1, 1, 0}, {N, K, 1, 1, 1});
    product.fill(random);
    Buffer<float> out(M * N);
    const FloatProduct arguments = {product.x.get(), out.get(), FloatType::kFloat32, product.scale.get(), nullptr};
    CHECK(linear_binary_weight(arguments, M, product.view(), pool(2)).is_ok(), "linear_binary_weight");
    for (int64_t i = 0; i < N; ++i) product.bias[i] = 0.0f;
    for (int64_t i = 0; i < out.size; ++i)
      CHECK(out[i] == product.expected(0, 0, i / N, i % N), "round " + std::to_string(round));
  }
}

TEST(floats_with_binary_weights_refuse_what_does_not_fit) {
  Random random(13);
  Product product({1, 3, 3, 4, 1, 1, 0, 0, 1, 1, 0}, {2, 4, 3, 3, 1});
  product.fill(random);
  Buffer<float> out(2);
  const FloatProduct arguments = {product.x.get(), out.get(), FloatType::kFloat32, product.scale.get(), nullptr};
  CHECK(!linear_binary_weight(arguments, 1, product.view(), pool(1)).is_ok(), "a kernel is no matrix");
  Conv2dShape shape = product.shape;
  shape.dilation_h = 2;
  CHECK(!conv2d_binary_weight(arguments, shape, product.view(), pool(1)).is_ok(), "a kernel that reaches beyond");
}

}  // namespace
}  // namespace stompp
