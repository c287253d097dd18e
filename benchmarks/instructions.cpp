// Runs one product a given number of times: instructions.py counts its instructions.
//   instructions bgemm M N K REPEATS
//   instructions bconv2d SIZE CHANNELS OUTPUTS KERNEL REPEATS     batch 1, stride 1, "same" zero padding
// A result is written as int32. Prints how often 256 products one repeat computes.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

// benchmarks.compare also compiles this with the core of an older revision, whose files lie in one folder.
#if __has_include("core/dispatch.h")
#include "core/bconv2d.h"
#include "core/bgemm.h"
#include "core/dispatch.h"
#else
#include "core/isa/dispatch.h"
#include "core/product/bconv2d.h"
#include "core/product/bgemm.h"
#endif

using namespace stompp;

static const WeightLayout& active_layout() {
#if __has_include("core/dispatch.h")
  return active_implementation()->layout;
#else
  return active_implementation()->product->layout;
#endif
}

int main(int argc, char** argv) {
  if (argc < 6) return 2;
  const bool matrix = std::string(argv[1]) == "bgemm";
  std::vector<int64_t> sizes;
  for (int i = 2; i + 1 < argc; ++i) sizes.push_back(std::atoll(argv[i]));
  const int64_t repeats = std::atoll(argv[argc - 1]);
  if (sizes.size() != (matrix ? 3u : 4u)) return 2;

  WeightShape weight_shape = {sizes[1], sizes[2], 1, 1, 1};
  Conv2dShape shape = {};
  int64_t M = sizes[0], row_elements = sizes[2];
  if (!matrix) {
    const int64_t size = sizes[0], kernel = sizes[3];
    weight_shape = {sizes[2], sizes[1], kernel, kernel, 1};
    shape = {1, size, size, sizes[1], 1, 1, kernel / 2, kernel / 2, 1, 1, 0};
    M = size * size;
    row_elements = sizes[1];
  }
  const Parallel pool = {[](int64_t count, int64_t, Parallel::Body body, void* context) { body(0, count, context); },
                         1};

  std::vector<uint32_t> rows(M * words_for(row_elements));
  std::vector<uint32_t> words(weight_shape.out_channels * weight_shape.taps() * words_for(weight_shape.in_channels));
  uint32_t state = 1;
  for (uint32_t& word : rows) word = state = state * 1664525u + 1013904223u;
  for (uint32_t& word : words) word = state = state * 1664525u + 1013904223u;

  const WeightLayout& layout = active_layout();
  std::vector<uint8_t> packed(packed_bytes(weight_shape, layout));
  PackedWeight weight = {};
  if (!pack_weight_words(words.data(), weight_shape, layout, packed.data(), pool).is_ok()) return 3;
  if (!view_packed(packed.data(), static_cast<int64_t>(packed.size()), weight_shape, &weight).is_ok()) return 3;

  std::vector<int32_t> out(M * weight_shape.out_channels);
  Epilogue epilogue;
  epilogue.N = weight_shape.out_channels;
  epilogue.out = out.data();
  for (int64_t i = 0; i < repeats; ++i) {
    const Status status =
        matrix ? bgemm(rows.data(), M, weight, epilogue, pool) : bconv2d(rows.data(), shape, weight, epilogue, pool);
    if (!status.is_ok()) return 3;
  }
  std::printf("%s %.0f\n", active_implementation()->name,
              static_cast<double>(M) * static_cast<double>(weight_shape.out_channels * weight_shape.K()) / 256.0);
  return 0;
}
