// Times the product kernels of the running implementation on the same products: kernels.py prints what choose.h bounds.
//   kernels N K ROWS...     prints one line a kernel and number of rows: "ROWS KERNEL NANOSECONDS CHOSEN"
// Nanoseconds are those of 256 products, the median of alternating runs with the rows' preparation; weights are packed
// beforehand. CHOSEN is 1 where choose.h picks that kernel.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "core/isa/dispatch.h"
#include "core/product/choose.h"

using namespace stompp;

namespace {

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

struct Candidate {
  const char* name;
  const ProductKernel* kernel;
  int64_t most_rows;
  std::vector<double> times;
};

}  // namespace

int main(int argc, char** argv) {
  const Implementation* implementation = active_implementation();
  if (argc < 4 || implementation == nullptr) return 2;
  const int64_t N = round_up(std::atoll(argv[1]), kBlockPanels * kPanelOutputs), K = std::atoll(argv[2]);
  const WeightShape shape = {N, K, 1, 1, 1};
  const int64_t k_bytes = implementation->product->layout.row_bytes(shape);

  uint32_t state = 1;
  const auto random_byte = [&state] { return static_cast<uint8_t>((state = state * 1664525u + 1013904223u) >> 24); };
  std::vector<uint8_t> weights(N * k_bytes), bits(kBlockRows * k_bytes);
  std::generate(weights.begin(), weights.end(), random_byte);
  std::generate(bits.begin(), bits.end(), random_byte);
  std::vector<const uint8_t*> runs(kBlockRows);
  for (int64_t r = 0; r < kBlockRows; ++r) runs[r] = bits.data() + r * k_bytes;
  const std::vector<int32_t> start(kBlockPanels * kPanelOutputs, static_cast<int32_t>(K));
  const std::vector<const int32_t*> starts(kBlockRows, start.data());
  std::vector<int32_t> dots(kBlockRows * N);

  for (int i = 3; i < argc; ++i) {
    const int64_t rows = std::atoll(argv[i]);
    if (rows < 1 || rows > kBlockRows) return 2;
    Candidate candidates[] = {{"blocks", &implementation->product->blocks, kBlockRows, {}},
                              {"few_rows", &implementation->product->few_rows, kFewRows, {}},
                              {"one_row", &implementation->product->one_row, 1, {}}};
    const ProductKernel* chosen = &product_kernel(*implementation->product, shape, rows);
    for (int round = 0; round < 41; ++round)
      for (Candidate& candidate : candidates) {
        if (candidate.kernel->multiply == nullptr || rows > candidate.most_rows) continue;
        const size_t bytes = static_cast<size_t>(round_up(candidate.kernel->scratch_bytes(k_bytes), 64));
        void* scratch = std::aligned_alloc(64, bytes);
        if (scratch == nullptr) return 3;
        ProductBlock block = {{runs.data(), 1, k_bytes, rows, k_bytes}, scratch, nullptr, kBlockPanels};
        const double begin = seconds();
        candidate.kernel->prepare_rows(block.rows, scratch);
        for (int64_t n = 0; n < N; n += kBlockPanels * kPanelOutputs) {
          block.panels = weights.data() + n * k_bytes;
          candidate.kernel->multiply(block, {starts.data(), dots.data() + n, N});
        }
        candidate.times.push_back(seconds() - begin);
        std::free(scratch);
      }
    for (Candidate& candidate : candidates) {
      if (candidate.times.empty()) continue;
      std::sort(candidate.times.begin(), candidate.times.end());
      const double products = static_cast<double>(rows) * static_cast<double>(N) * static_cast<double>(K);
      std::printf("%lld %s %.5f %d\n", static_cast<long long>(rows), candidate.name,
                  candidate.times[candidate.times.size() / 2] * 1e9 * 256 / products, candidate.kernel == chosen);
    }
  }
  return 0;
}
