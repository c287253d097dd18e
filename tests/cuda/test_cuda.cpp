// The GPU kernels, emulated, against the core's scalar implementation. Buffers are exactly as long as they must be.
#include <algorithm>
#include <string>

#include "check.h"
#include "core/isa/dispatch.h"
#include "core/product/bconv2d.h"
#include "core/signs/pack.h"
#include "cuda/bconv2d/bconv2d.h"
#include "cuda/bgemm/bgemm.h"
#include "cuda/pack_weight/pack_weight.h"
#include "cuda/product/choose.h"

namespace stompp::cuda {
namespace {

using test::Buffer;
using test::Random;

Parallel serial() {
  return {[](int64_t count, int64_t, Parallel::Body body, void* context) { body(0, count, context); }, 1};
}

void fill(Buffer<uint32_t>& words, int64_t K, Random& random) {
  for (int64_t i = 0; i < words.size; ++i)
    words[i] = static_cast<uint32_t>(random.next()) & valid_bits(K, i % words_for(K));
}

struct Case {
  Conv2dShape conv;
  WeightShape weight;
  bool is_matrix;
  int64_t rows() const { return conv.batch * conv.out_height(weight) * conv.out_width(weight); }
};

Case matrix(int64_t M, int64_t N, int64_t K) { return {{M, 1, 1, K, 1, 1, 0, 0, 1, 1, 0}, {N, K, 1, 1, 1}, true}; }

using Launch = Status (*)(const Product&, Stream);  // one kernel; null: the op, which chooses

constexpr Device kDevice = {80, 4};

// Weights and rows of a case, and what the scalar implementation makes of them.
struct Problem {
  Problem(const Case& c, Random& random)
      : shape(c),
        x(c.conv.batch * c.conv.height * c.conv.width * words_for(c.conv.channels)),
        weight_words(c.weight.out_channels * c.weight.taps() * words_for(c.weight.in_channels)),
        device(WeightLayout::of(c.weight).words()),
        host(packed_bytes(c.weight, layout_for(c.weight, active_implementation()->product->layout))) {
    fill(x, c.conv.channels, random);
    fill(weight_words, c.weight.in_channels, random);
    CHECK(
        pack_weight_words(weight_words.get(), c.weight, active_implementation()->product->layout, host.get(), serial())
            .is_ok(),
        "host weight");
    for (int64_t i = 0; i < device.size; ++i) device[i] = 0xCDCDCDCDu;
    CHECK(pack_weight(weight_words.get(), c.weight, device.get(), nullptr).is_ok(), "device weight");
  }

  void expected(const Epilogue& epilogue) {
    PackedWeight weight = {};
    CHECK(view_packed(host.get(), host.size, shape.weight, &weight).is_ok(), "view");
    CHECK(stompp::bconv2d(x.get(), shape.conv, weight, epilogue, serial()).is_ok(), "reference");
  }

  Product product(const Epilogue& epilogue) {
    const DeviceWeight weight = {shape.weight, device.get()};
    return shape.is_matrix ? matrix_product(x.get(), shape.conv.batch, weight, epilogue)
                           : conv2d_product(x.get(), shape.conv, weight, epilogue);
  }

  Status run_op(const Epilogue& epilogue) {
    const DeviceWeight weight = {shape.weight, device.get()};
    return shape.is_matrix ? bgemm(x.get(), shape.conv.batch, weight, epilogue, kDevice, nullptr)
                           : cuda::bconv2d(x.get(), shape.conv, weight, epilogue, kDevice, nullptr);
  }

  Case shape;
  Buffer<uint32_t> x, weight_words, device;
  Buffer<uint8_t> host;
};

template <class T>
void compare(Buffer<T>& actual, Buffer<T>& expected, const std::string& what) {
  for (int64_t i = 0; i < actual.size; ++i)
    CHECK(actual[i] == expected[i], what + " " + std::to_string(i) + ": " + std::to_string(actual[i]) + " instead of " +
                                        std::to_string(expected[i]));
}

template <class T>
void check_epilogue(Problem& problem, Epilogue epilogue, int64_t size, Launch launch, const std::string& what) {
  Buffer<T> expected(size), actual(size);
  for (int64_t i = 0; i < size; ++i) actual[i] = static_cast<T>(0x5A5A5A5A);
  epilogue.out = expected.get();
  problem.expected(epilogue);
  epilogue.out = actual.get();
  if (launch == nullptr) {
    CHECK(problem.run_op(epilogue).is_ok(), "op");
  } else {
    // A kernel expects words that groups share to be clear.
    if (epilogue.kind == Epilogue::Kind::kThreshold) std::fill(actual.get(), actual.get() + size, T{0});
    CHECK(launch(problem.product(epilogue), nullptr).is_ok(), "kernel");
  }
  compare(actual, expected, what);
}

enum class Variant { kInt32, kHalf, kFloatWithResidual, kThreshold, kThresholdByResidual };

void check_variant(Problem& problem, Variant variant, Launch launch, Random& random) {
  const Case& c = problem.shape;
  const int64_t N = c.weight.out_channels, M = c.rows(), words = words_for(N);
  Epilogue epilogue;
  epilogue.N = N;
  if (variant == Variant::kInt32) return check_epilogue<int32_t>(problem, epilogue, M * N, launch, "int32");
  if (variant == Variant::kHalf || variant == Variant::kFloatWithResidual) {
    Buffer<float> scale(N), bias(N);
    Buffer<uint16_t> residual(M * N);
    for (int64_t n = 0; n < N; ++n) scale[n] = random.uniform(), bias[n] = random.uniform();
    for (int64_t i = 0; i < M * N; ++i) residual[i] = float_to_bfloat16(random.uniform());
    epilogue.kind = Epilogue::Kind::kAffine;
    epilogue.scale = scale.get();
    epilogue.bias = bias.get();
    epilogue.out_type = FloatType::kFloat16;
    if (variant == Variant::kHalf) return check_epilogue<uint16_t>(problem, epilogue, M * N, launch, "half");
    epilogue.out_type = FloatType::kFloat32;
    epilogue.fused = random.between(0, 1) == 1;
    epilogue.residual = residual.get();
    epilogue.residual_type = FloatType::kBFloat16;
    check_epilogue<float>(problem, epilogue, M * N, launch, "float with residual");
    Buffer<float> rprelu(3 * N);
    for (int64_t i = 0; i < 3 * N; ++i) rprelu[i] = random.uniform();
    epilogue.rprelu = rprelu.get();
    return check_epilogue<float>(problem, epilogue, M * N, launch, "float with RPReLU");
  }
  Buffer<int32_t> thresholds(2 * N);
  Buffer<uint32_t> flips(words), residual_words(M * words);
  const int64_t reach = std::max<int64_t>(1, c.weight.K() / 4);
  for (int64_t i = 0; i < 2 * N; ++i) thresholds[i] = static_cast<int32_t>(random.between(-reach, reach));
  fill(flips, N, random);
  fill(residual_words, N, random);
  epilogue.kind = Epilogue::Kind::kThreshold;
  epilogue.thresholds = thresholds.get();
  epilogue.flip_words = flips.get();
  if (variant == Variant::kThresholdByResidual) epilogue.residual_words = residual_words.get();
  check_epilogue<uint32_t>(problem, epilogue, M * words, launch, "threshold");
}

// Two of the five epilogues; the cases go through all of them in turn.
void check_product(const Case& c, Launch launch, Random& random) {
  static int turn = 0;
  Problem problem(c, random);
  for (int i = 0; i < 2; ++i) check_variant(problem, static_cast<Variant>(turn++ % 5), launch, random);
}

Product shaped(int64_t M, int64_t N, int64_t K) {
  return matrix_product(nullptr, M, {{N, K, 1, 1, 1}, nullptr}, Epilogue());
}

TEST(kernels_are_chosen_by_device_and_shape) {
  const Device hopper = {90, 132};
  CHECK(choose_tile(shaped(1, 8192, 8192), hopper) == TileSize::kFew, "one row");
  CHECK(choose_tile(shaped(16, 8192, 8192), hopper) == TileSize::kFew, "16 rows");
  CHECK(choose_tile(shaped(17, 8192, 8192), hopper) == TileSize::kNarrow, "17 rows");
  CHECK(choose_tile(shaped(64, 1024, 8192), hopper) == TileSize::kFew, "16 narrow tiles, much of K");
  CHECK(choose_tile(shaped(1024, 1024, 1024), hopper) == TileSize::kNarrow, "too few wide tiles");
  CHECK(choose_tile(shaped(8192, 8192, 8192), hopper) == TileSize::kWide, "8192");
  CHECK(choose_tile(shaped(1 << 20, 300, 64), hopper) == TileSize::kNarrow, "half a wide tile would be empty");
  const Product large = shaped(8192, 8192, 8192), small = shaped(8, 64, 64);
  CHECK(choose_product(large, hopper) == product_wide_sm90a, "wgmma");
  CHECK(choose_product(small, hopper) == product_few_sm80, "few rows on sm_90");
  CHECK(choose_product(large, {86, 10}) == product_wide_sm80, "sm_86");
  CHECK(choose_product(large, {120, 10}) == product_wide_sm100, "sm_120");
  CHECK(choose_product(large, {75, 10}) == product_sm75, "sm_75");
  CHECK(choose_product(large, {70, 10}) == nullptr, "sm_70 has none");
}

TEST(what_the_indices_cannot_count_is_refused) {
  const WeightShape fine = {64, 64, 3, 3, 1};
  CHECK(stompp::cuda::check_product(1 << 20, fine).is_ok(), "usual");
  CHECK(!stompp::cuda::check_product(int64_t{1} << 31, fine).is_ok(), "rows");
  CHECK(!stompp::cuda::check_product(1, {1 << 22, 64, 1, 1, 1}).is_ok(), "outputs");
  CHECK(!stompp::cuda::check_product(1, {1 << 17, 32, 1, 1, 1 << 17}).is_ok(), "groups");
  CHECK(!stompp::cuda::check_product(1, {64, 64, 256, 1, 1}).is_ok(), "kernel");
  const Conv2dShape wide = {1, 1, 1 << 30, 64, 1, 1 << 28, 1, 1 << 30, 1, 1, 0};
  CHECK(!cuda::bconv2d(nullptr, wide, {fine, nullptr}, Epilogue(), kDevice, nullptr).is_ok(), "padded input");
}

TEST(packed_weights_come_back) {
  Random random(2);
  for (const WeightShape& shape :
       {WeightShape{1, 1, 1, 1, 1}, {65, 513, 1, 1, 1}, {12, 40, 3, 2, 3}, {64, 1, 3, 3, 64}}) {
    Problem problem({{1, 9, 9, shape.in_channels * shape.groups, 1, 1, 0, 0, 1, 1, 0}, shape, false}, random);
    Buffer<uint32_t> back(problem.weight_words.size);
    CHECK(unpack_weight(problem.device.get(), shape, back.get(), nullptr).is_ok(), "unpack");
    compare(back, problem.weight_words, "word");
    const WeightLayout layout = WeightLayout::of(shape);
    for (int64_t i = 0; i < layout.words(); ++i) CHECK(problem.device[i] != 0xCDCDCDCDu, "every word is written");
  }
}

const Launch kLaunches[] = {product_narrow_sm80, product_few_sm80, product_sm75};

const Case kMatrices[] = {matrix(1, 1, 1),       matrix(3, 33, 40),     matrix(17, 65, 512),     matrix(5, 300, 70),
                          matrix(130, 70, 1100), matrix(20, 130, 1024), matrix(16, 64, 128 * 40)};

// {batch, height, width, channels, stride, padding, dilation, padding value}, {outputs, channels of a group, kernel,
// groups}
const Case kConvolutions[] = {
    {{2, 5, 6, 64, 1, 1, 1, 1, 1, 1, 0}, {70, 64, 3, 3, 1}, false},
    {{1, 7, 4, 40, 2, 1, 1, 2, 1, 2, 0}, {33, 40, 3, 2, 1}, false},
    {{1, 6, 6, 128, 1, 1, 2, 2, 2, 2, -1}, {32, 128, 3, 3, 1}, false},
    {{3, 4, 4, 32, 1, 1, 1, 1, 1, 1, 1}, {5, 32, 3, 3, 1}, false},
    {{2, 4, 5, 60, 1, 1, 1, 1, 1, 1, 0}, {9, 20, 3, 3, 3}, false},
    {{1, 4, 5, 64, 2, 2, 1, 1, 1, 1, 0}, {80, 32, 3, 3, 2}, false},
    {{1, 3, 3, 200, 1, 1, 3, 3, 1, 1, 0}, {10, 100, 1, 1, 2}, false},
};

TEST(matrices_equal_the_scalar_implementation) {
  Random random(4);
  for (const Case& c : kMatrices)
    for (const Launch launch : kLaunches) check_product(c, launch, random);
  for (const Launch launch : {product_wide_sm80, product_wide_sm90a}) {
    check_product(matrix(5, 300, 70), launch, random);
    check_product(matrix(130, 70, 1600), launch, random);
    check_product(matrix(70, 20, 7000), launch, random);
    check_product(kConvolutions[0], launch, random);
    check_product(kConvolutions[5], launch, random);
  }
}

TEST(convolutions_equal_the_scalar_implementation) {
  Random random(5);
  for (const Case& c : kConvolutions)
    for (const Launch launch : kLaunches) check_product(c, launch, random);
}

// Depthwise, and groups of 2, 4 and 8 channels.
const Case kSmallGroups[] = {
    {{2, 5, 6, 40, 1, 1, 1, 1, 1, 1, 0}, {40, 1, 3, 3, 40}, false},
    {{1, 7, 5, 70, 2, 1, 2, 1, 1, 2, -1}, {70, 1, 5, 2, 70}, false},
    {{1, 4, 4, 64, 1, 1, 1, 1, 1, 1, 1}, {64, 2, 3, 3, 32}, false},
    {{1, 4, 5, 36, 1, 2, 1, 1, 1, 1, 0}, {36, 4, 3, 3, 9}, false},
    {{1, 3, 3, 48, 1, 1, 0, 0, 1, 1, 0}, {48, 8, 1, 1, 6}, false},
};

// Slow here: sixteen times the multiplications.
TEST(byte_kernels_equal_the_scalar_implementation) {
  Random random(8);
  check_product(matrix(17, 40, 600), product_few_sm100, random);
  check_product(matrix(3, 33, 40), product_narrow_sm100, random);
  check_product(matrix(5, 140, 70), product_wide_sm100, random);
  check_product(kConvolutions[4], product_few_sm100, random);
}

TEST(small_groups_equal_the_scalar_implementation) {
  Random random(6);
  for (const Case& c : kSmallGroups) check_product(c, nullptr, random);
}

TEST(the_ops_choose_a_kernel_and_clear_shared_words) {
  Random random(7);
  for (const Case& c : {kMatrices[1], kMatrices[4], kConvolutions[0], kConvolutions[4], kConvolutions[5]})
    check_product(c, nullptr, random);
}

}  // namespace
}  // namespace stompp::cuda

// With an argument the program ends at the first case that fails.
int main(int count, char**) {
  if (!stompp::select_implementation("scalar").is_ok()) return 1;
  for (const stompp::test::Case& test_case : stompp::test::cases()) {
    const int before = stompp::test::failures();
    test_case.run();
    std::printf("cuda %s: %s\n", test_case.name, stompp::test::failures() == before ? "ok" : "FAILED");
    if (count > 1 && stompp::test::failures() > 0) break;
  }
  std::printf("%zu passed, %d failed\n", stompp::test::cases().size(), stompp::test::failures());
  return stompp::test::failures() == 0 ? 0 : 1;
}
