// Times whole binary products of the running implementation on one thread: wasm.py runs it in WebAssembly.
//   products SECONDS     prints one line a product: "NAME GOPS", from the median of runs for so long
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/isa/dispatch.h"
#include "core/product/bconv2d.h"
#include "core/product/bgemm.h"

using namespace stompp;

namespace {

constexpr Parallel kOneThread = {
    [](int64_t count, int64_t, Parallel::Body body, void* context) { body(0, count, context); }, 1};

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::vector<uint32_t> random_words(int64_t count) {
  static uint32_t state = 1;
  std::vector<uint32_t> words(static_cast<size_t>(count));
  for (uint32_t& word : words) word = state = state * 1664525u + 1013904223u;
  return words;
}

struct Weight {
  explicit Weight(const WeightShape& shape) {
    const WeightLayout& layout = active_implementation()->product->layout;
    const auto words = random_words(shape.out_channels * shape.taps() * words_for(shape.in_channels));
    bytes.resize(static_cast<size_t>(packed_bytes(shape, layout)));
    Status status = pack_weight_words(words.data(), shape, layout, bytes.data(), kOneThread);
    if (status.is_ok()) status = view_packed(bytes.data(), static_cast<int64_t>(bytes.size()), shape, &view);
    if (!status.is_ok()) std::exit(3);
  }
  std::vector<uint8_t> bytes;
  PackedWeight view;
};

// Runs a product of M rows, whose epilogue compares the sums with thresholds, as a packed layer's does.
template <class Product>
void time_product(const char* name, const WeightShape& shape, int64_t M, double budget, const Product& product) {
  const int64_t N = shape.out_channels;
  const std::vector<int32_t> thresholds(static_cast<size_t>(N));
  const std::vector<uint32_t> flips(static_cast<size_t>(words_for(N)));
  std::vector<uint32_t> out(static_cast<size_t>(M * words_for(N)));
  Epilogue epilogue;
  epilogue.kind = Epilogue::Kind::kThreshold;
  epilogue.N = N;
  epilogue.thresholds = thresholds.data();
  epilogue.flip_words = flips.data();
  epilogue.out = out.data();
  const Weight weight(shape);
  std::vector<double> times;
  for (const double begin = seconds(); times.size() < 3 || seconds() - begin < budget;) {
    const double start = seconds();
    if (!product(weight.view, epilogue).is_ok()) std::exit(3);
    times.push_back(seconds() - start);
  }
  std::sort(times.begin(), times.end());
  const double operations = 2.0 * static_cast<double>(M) * static_cast<double>(N) * static_cast<double>(shape.K());
  std::printf("%s %.2f\n", name, operations / times[times.size() / 2] / 1e9);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 || active_implementation() == nullptr) return 2;
  const double budget = std::atof(argv[1]);
  const WeightShape matrix = {512, 1024, 1, 1, 1};
  const auto rows = random_words(256 * words_for(matrix.K()));
  time_product("bgemm_256x512x1024", matrix, 256, budget, [&](const PackedWeight& weight, const Epilogue& epilogue) {
    return bgemm(rows.data(), 256, weight, epilogue, kOneThread);
  });
  for (int64_t side = 56, C = 64; C <= 512; side /= 2, C *= 2) {  // the stages of ResNet-18
    const auto image = random_words(side * side * words_for(C));
    const Conv2dShape shape = {1, side, side, C, 1, 1, 1, 1, 1, 1, 0};
    const std::string name =
        "bconv2d_3x3_" + std::to_string(side) + "x" + std::to_string(side) + "x" + std::to_string(C);
    time_product(name.c_str(), {C, C, 3, 3, 1}, side * side, budget,
                 [&](const PackedWeight& weight, const Epilogue& epilogue) {
                   return bconv2d(image.data(), shape, weight, epilogue, kOneThread);
                 });
  }
  return 0;
}
