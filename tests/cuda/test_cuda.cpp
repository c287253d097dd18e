// The GPU kernels, emulated or on a GPU, against the core's scalar implementation. Buffers are exactly as long as they
// must be.
#include <algorithm>
#include <string>
#include <vector>

#include "check.h"
#include "core/isa/dispatch.h"
#include "core/product/bconv2d.h"
#include "core/signs/pack.h"
#include "cuda/bconv2d/bconv2d.h"
#include "cuda/bgemm/bgemm.h"
#include "cuda/pack_weight/pack_weight.h"
#include "cuda/product/choose.h"
#include "memory.h"

namespace stompp::cuda {
namespace {

using test::Buffer;
using test::Random;

void run_here(int64_t count, int64_t, Parallel::Body body, void* context) { body(0, count, context); }

Parallel serial() { return {run_here, 1}; }

void fill(Mirrored<uint32_t>& words, int64_t K, Random& random) {
  for (int64_t i = 0; i < words.size; ++i)
    words[i] = static_cast<uint32_t>(random.next()) & valid_bits(K, i % words_for(K));
  words.send();
}

void fill(Mirrored<float>& values, Random& random) {
  for (int64_t i = 0; i < values.size; ++i) values[i] = random.uniform();
  values.send();
}

struct Case {
  Conv2dShape conv;
  WeightShape weight;
  bool is_matrix;
  int64_t rows() const { return conv.batch * conv.out_height(weight) * conv.out_width(weight); }
};

Case matrix(int64_t M, int64_t N, int64_t K) { return {{M, 1, 1, K, 1, 1, 0, 0, 1, 1, 0}, {N, K, 1, 1, 1}, true}; }

using Launch = Status (*)(const Product&, Stream);  // one kernel; null: the op, which chooses

// The kernels that the ops choose; what a test launches itself may be another family's.
#ifdef STOMPP_EMULATE_CUDA
Device this_device() { return {80, 4}; }
#else
Device this_device() {
  cudaDeviceProp properties;
  require(cudaGetDeviceProperties(&properties, 0));
  return {properties.major * 10 + properties.minor, properties.multiProcessorCount};
}
#endif

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
        pack_weight_words(weight_words.host(), c.weight, active_implementation()->product->layout, host.get(), serial())
            .is_ok(),
        "host weight");
    for (int64_t i = 0; i < device.size; ++i) device[i] = 0xCDCDCDCDu;
    device.send();
    CHECK(pack_weight(weight_words.device(), c.weight, device.device(), nullptr).is_ok(), "device weight");
  }

  void expected(const Epilogue& epilogue) {
    PackedWeight weight = {};
    CHECK(view_packed(host.get(), host.size, shape.weight, &weight).is_ok(), "view");
    CHECK(stompp::bconv2d(x.host(), shape.conv, weight, epilogue, serial()).is_ok(), "reference");
  }

  Product product(const Epilogue& epilogue) {
    const DeviceWeight weight = {shape.weight, device.device()};
    return shape.is_matrix ? matrix_product(x.device(), shape.conv.batch, weight, epilogue)
                           : conv2d_product(x.device(), shape.conv, weight, epilogue);
  }

  Status run_op(const Epilogue& epilogue) {
    const DeviceWeight weight = {shape.weight, device.device()};
    return shape.is_matrix ? bgemm(x.device(), shape.conv.batch, weight, epilogue, this_device(), nullptr)
                           : cuda::bconv2d(x.device(), shape.conv, weight, epilogue, this_device(), nullptr);
  }

  Case shape;
  Mirrored<uint32_t> x, weight_words, device;
  Buffer<uint8_t> host;
};

template <class T>
void compare(Mirrored<T>& actual, Mirrored<T>& expected, const std::string& what) {
  for (int64_t i = 0; i < actual.size; ++i)
    CHECK(actual[i] == expected[i], what + " " + std::to_string(i) + ": " + std::to_string(actual[i]) + " instead of " +
                                        std::to_string(expected[i]));
}

// An epilogue with pointers of the host, and the same with those of the device.
struct Epilogues {
  Epilogue host, device;

  template <class Member, class T>
  void point(Member member, Mirrored<T>& at) {
    host.*member = at.host();
    device.*member = at.device();
  }
};

void run_both(Problem& problem, const Epilogues& epilogues, Launch launch) {
  problem.expected(epilogues.host);
  if (launch == nullptr)
    CHECK(problem.run_op(epilogues.device).is_ok(), "op");
  else
    CHECK(launch(problem.product(epilogues.device), nullptr).is_ok(), "kernel");
  wait_for_kernels();
}

// What a kernel writes over; one that is launched by itself expects bits, whose words groups may share, to be clear.
template <class T>
void mark(Mirrored<T>& to, bool is_clear) {
  for (int64_t i = 0; i < to.size; ++i) to[i] = static_cast<T>(is_clear ? 0 : 0x5A5A5A5A);
  to.send();
}

template <class T>
void check_epilogue(Problem& problem, Epilogues epilogues, int64_t size, Launch launch, const std::string& what) {
  Mirrored<T> expected(size), actual(size);
  mark(actual, launch != nullptr && epilogues.host.kind == Epilogue::Kind::kThreshold);
  epilogues.host.out = expected.host();
  epilogues.device.out = actual.device();
  run_both(problem, epilogues, launch);
  actual.fetch();
  compare(actual, expected, what);
}

enum class Variant {
  kInt32,
  kHalf,
  kFloatWithResidual,
  kThreshold,
  kThresholdByResidual,
  kSignsBesideFloats,
  kSignsByLimits
};
constexpr int kVariants = 7;

// The signs of an affine epilogue, whose floats are not written where there are limits.
void check_signs(Problem& problem, Variant variant, Epilogues epilogues, Launch launch, Random& random) {
  const int64_t N = epilogues.host.N, M = problem.shape.rows();
  Mirrored<float> limits(2 * N);
  Mirrored<uint32_t> expected(M * words_for(N)), actual(expected.size);
  epilogues.host.sign_words = expected.host();
  epilogues.device.sign_words = actual.device();
  mark(actual, launch != nullptr);
  const float reach = static_cast<float>(problem.shape.weight.K());
  for (int64_t i = 0; i < 2 * N; ++i) limits[i] = (i < N ? -reach : reach) * (random.uniform() + 1.0f) / 8.0f;
  limits.send();
  if (variant == Variant::kSignsByLimits) {
    epilogues.point(&Epilogue::limits, limits);
    run_both(problem, epilogues, launch);
  } else {
    check_epilogue<float>(problem, epilogues, M * N, launch, "floats beside signs");
  }
  actual.fetch();
  compare(actual, expected, "signs");
}

void check_affine(Problem& problem, Variant variant, Epilogues epilogues, Launch launch, Random& random) {
  const int64_t N = epilogues.host.N, size = problem.shape.rows() * N;
  Mirrored<float> scale(N), bias(N), rprelu(3 * N);
  for (Mirrored<float>* values : {&scale, &bias, &rprelu}) fill(*values, random);
  Mirrored<uint16_t> residual(size);
  for (int64_t i = 0; i < size; ++i) residual[i] = float_to_bfloat16(random.uniform());
  residual.send();
  epilogues.point(&Epilogue::scale, scale);
  epilogues.point(&Epilogue::bias, bias);
  epilogues.host.fused = epilogues.device.fused = random.between(0, 1) == 1;
  epilogues.host.kind = epilogues.device.kind = Epilogue::Kind::kAffine;
  if (variant == Variant::kSignsBesideFloats || variant == Variant::kSignsByLimits)
    return check_signs(problem, variant, epilogues, launch, random);
  if (variant == Variant::kHalf) {
    epilogues.host.out_type = epilogues.device.out_type = FloatType::kFloat16;
    return check_epilogue<uint16_t>(problem, epilogues, size, launch, "half");
  }
  epilogues.point(&Epilogue::residual, residual);
  epilogues.host.residual_type = epilogues.device.residual_type = FloatType::kBFloat16;
  check_epilogue<float>(problem, epilogues, size, launch, "float with residual");
  epilogues.point(&Epilogue::rprelu, rprelu);
  epilogues.point(&Epilogue::residual_scale, bias);
  epilogues.point(&Epilogue::residual_bias, scale);
  check_epilogue<float>(problem, epilogues, size, launch, "float with RPReLU");
}

// Now and then a threshold that no sum reaches, as a channel without a slope has it.
int32_t random_threshold(int64_t reach, Random& random) {
  const int64_t which = random.between(0, 9);
  return which == 0 ? INT32_MIN : which == 1 ? INT32_MAX : static_cast<int32_t>(random.between(-reach, reach));
}

void check_threshold(Problem& problem, Variant variant, Epilogues epilogues, Launch launch, Random& random) {
  const int64_t N = epilogues.host.N, M = problem.shape.rows(), words = words_for(N);
  Mirrored<int32_t> thresholds(2 * N);
  Mirrored<uint32_t> flips(words), residual_words(M * words);
  const int64_t reach = std::max<int64_t>(1, problem.shape.weight.K() / 4);
  for (int64_t i = 0; i < 2 * N; ++i) thresholds[i] = random_threshold(reach, random);
  thresholds.send();
  fill(flips, N, random);
  fill(residual_words, N, random);
  epilogues.host.kind = epilogues.device.kind = Epilogue::Kind::kThreshold;
  epilogues.point(&Epilogue::thresholds, thresholds);
  epilogues.point(&Epilogue::flip_words, flips);
  if (variant == Variant::kThresholdByResidual) epilogues.point(&Epilogue::residual_words, residual_words);
  check_epilogue<uint32_t>(problem, epilogues, M * words, launch, "threshold");
}

void check_variant(Problem& problem, Variant variant, Launch launch, Random& random) {
  Epilogues epilogues;
  epilogues.host.N = epilogues.device.N = problem.shape.weight.out_channels;
  if (variant == Variant::kInt32)
    check_epilogue<int32_t>(problem, epilogues, problem.shape.rows() * epilogues.host.N, launch, "int32");
  else if (variant == Variant::kThreshold || variant == Variant::kThresholdByResidual)
    check_threshold(problem, variant, epilogues, launch, random);
  else
    check_affine(problem, variant, epilogues, launch, random);
}

// Two of the epilogues, and on a GPU all; the cases go through all of them in turn.
void check_product(const Case& c, Launch launch, Random& random) {
  static int turn = 0;
  Problem problem(c, random);
#ifdef STOMPP_EMULATE_CUDA
  constexpr int kTurns = 2;
#else
  constexpr int kTurns = kVariants;
#endif
  for (int i = 0; i < kTurns; ++i) check_variant(problem, static_cast<Variant>(turn++ % kVariants), launch, random);
}

#ifdef STOMPP_EMULATE_CUDA
Product shaped(int64_t M, int64_t N, int64_t K) {
  return matrix_product(nullptr, M, {{N, K, 1, 1, 1}, nullptr}, Epilogue());
}

// Names the kernels of all families; a program for a GPU holds its own alone.
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
#endif

TEST(what_the_indices_cannot_count_is_refused) {
  const WeightShape fine = {64, 64, 3, 3, 1};
  CHECK(stompp::cuda::check_product(1 << 20, fine).is_ok(), "usual");
  CHECK(!stompp::cuda::check_product(int64_t{1} << 31, fine).is_ok(), "rows");
  CHECK(!stompp::cuda::check_product(1, {1 << 22, 64, 1, 1, 1}).is_ok(), "outputs");
  CHECK(!stompp::cuda::check_product(1, {1 << 17, 32, 1, 1, 1 << 17}).is_ok(), "groups");
  CHECK(!stompp::cuda::check_product(1, {64, 64, 256, 1, 1}).is_ok(), "kernel");
  const Conv2dShape wide = {1, 1, 1 << 30, 64, 1, 1 << 28, 1, 1 << 30, 1, 1, 0};
  CHECK(!cuda::bconv2d(nullptr, wide, {fine, nullptr}, Epilogue(), this_device(), nullptr).is_ok(), "padded input");
}

TEST(packed_weights_come_back) {
  Random random(2);
  for (const WeightShape& shape :
       {WeightShape{1, 1, 1, 1, 1}, {65, 513, 1, 1, 1}, {12, 40, 3, 2, 3}, {64, 1, 3, 3, 64}}) {
    Problem problem({{1, 9, 9, shape.in_channels * shape.groups, 1, 1, 0, 0, 1, 1, 0}, shape, false}, random);
    Mirrored<uint32_t> back(problem.weight_words.size);
    CHECK(unpack_weight(problem.device.device(), shape, back.device(), nullptr).is_ok(), "unpack");
    wait_for_kernels();
    back.fetch();
    problem.device.fetch();
    compare(back, problem.weight_words, "word");
    const WeightLayout layout = WeightLayout::of(shape);
    for (int64_t i = 0; i < layout.words(); ++i) CHECK(problem.device[i] != 0xCDCDCDCDu, "every word is written");
  }
}

// Those with small tiles, and those with wide ones. Bytes are slow in the emulation, which has a test of its own for
// them: sixteen times the multiplications.
const std::vector<Launch> kLaunches = {
#ifdef STOMPP_SM80
    product_narrow_sm80,  product_few_sm80,
#endif
#ifdef STOMPP_SM75
    product_sm75,
#endif
#if defined(STOMPP_SM100) && !defined(STOMPP_EMULATE_CUDA)
    product_narrow_sm100, product_few_sm100,
#endif
};
const std::vector<Launch> kWideLaunches = {
#ifdef STOMPP_SM80
    product_wide_sm80,
#endif
#ifdef STOMPP_SM90A
    product_wide_sm90a, product_pair_sm90a, product_resident_sm90a,
#endif
#if defined(STOMPP_SM100) && !defined(STOMPP_EMULATE_CUDA)
    product_wide_sm100,
#endif
};

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
  for (const Launch launch : kWideLaunches) {
    check_product(matrix(5, 300, 70), launch, random);
    check_product(matrix(130, 70, 1600), launch, random);
    check_product(matrix(70, 20, 7000), launch, random);
    check_product(matrix(70, 20, 4600), launch, random);
    check_product(matrix(330, 200, 1100), launch, random);
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

#ifdef STOMPP_SM90A
// Often enough that each of two blocks falls behind the other, with more steps than stages.
TEST(blocks_that_share_weights_wait_for_each_other) {
  Random random(10);
  for (int i = 0; i < 4; ++i) check_product(matrix(140, 20, 3000), product_pair_sm90a, random);
}

// The same of two warp groups, each with outputs that the other prepares.
TEST(warp_groups_that_share_weights_go_their_own_ways) {
  Random random(11);
  for (int i = 0; i < 8; ++i) check_product(matrix(200, 200, 600), product_resident_sm90a, random);
}
#endif

#ifdef STOMPP_EMULATE_CUDA
TEST(byte_kernels_equal_the_scalar_implementation) {
  Random random(8);
  check_product(matrix(17, 40, 600), product_few_sm100, random);
  check_product(matrix(3, 33, 40), product_narrow_sm100, random);
  check_product(matrix(5, 140, 70), product_wide_sm100, random);
  check_product(kConvolutions[4], product_few_sm100, random);
}
#else
// Enough blocks for every multiprocessor, in the layers of networks; the last ones fill wide tiles.
TEST(large_products_equal_the_core) {
  Random random(9);
  for (const Case& c : {matrix(4099, 1280, 1500), matrix(1, 8192, 4096), matrix(4096, 1024, 8192),
                        Case{{33, 28, 28, 128, 2, 2, 1, 1, 1, 1, 0}, {256, 128, 3, 3, 1}, false},
                        Case{{66, 16, 16, 64, 1, 1, 1, 1, 1, 1, 0}, {512, 64, 3, 3, 1}, false},
                        Case{{66, 16, 16, 256, 1, 1, 1, 1, 1, 1, -1}, {512, 256, 3, 3, 1}, false}}) {
    check_product(c, nullptr, random);
    for (const Launch launch : kWideLaunches) check_product(c, launch, random);
  }
}
#endif

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

// With an argument the program ends at the first case that fails, and with --starts at once. On a GPU the core's
// fastest implementation, which has tests of its own, is the oracle: the cases are large.
int main(int count, char** arguments) {
  if (count > 1 && std::string(arguments[1]) == "--starts") return 0;
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
#ifdef STOMPP_EMULATE_CUDA
  if (!stompp::select_implementation("scalar").is_ok()) return 1;
#endif
  for (const stompp::test::Case& test_case : stompp::test::cases()) {
    const int before = stompp::test::failures();
    test_case.run();
    std::printf("cuda %s: %s\n", test_case.name, stompp::test::failures() == before ? "ok" : "FAILED");
    if (count > 1 && stompp::test::failures() > 0) break;
  }
  std::printf("%zu passed, %d failed\n", stompp::test::cases().size(), stompp::test::failures());
  return stompp::test::failures() == 0 ? 0 : 1;
}
