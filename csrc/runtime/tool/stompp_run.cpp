// Runs a packed network on an array or an image, or says what it holds.
#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <cstdlib>
#include <numeric>

#include "runtime/tool/npy.h"

namespace {

constexpr const char* kUsage =
    "usage: stompp-run NETWORK                     say what a network holds\n"
    "       stompp-run NETWORK INPUT [--top K]     run it, and print the K largest scores (5)\n"
    "       stompp-run NETWORK INPUT --bench N     time N runs\n"
    "\n"
    "INPUT is a .npy file of float32, batch first, or a .pgm or .ppm image, whose values become numbers in [0, 1].\n"
    "options: --threads N (1), --implementation NAME, one of those that are listed without arguments\n";

struct Options {
  std::vector<std::string> files;
  int top = 5, bench = 0, threads = 1;
  const char* implementation = nullptr;
};

bool parse(int argc, char** argv, Options* options) {
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    if (word.substr(0, 2) != "--") {
      options->files.push_back(word);
      continue;
    }
    if (++i == argc) return false;
    int* number = word == "--top"       ? &options->top
                  : word == "--bench"   ? &options->bench
                  : word == "--threads" ? &options->threads
                                        : nullptr;
    if (number != nullptr)
      *number = std::atoi(argv[i]);
    else if (word == "--implementation")
      options->implementation = argv[i];
    if ((number == nullptr && word != "--implementation") || (number != nullptr && *number < 1)) return false;
  }
  return options->files.size() == 1 || options->files.size() == 2;
}

int fail(const std::string& text) {
  std::fprintf(stderr, "error: %s\n", text.c_str());
  return 1;
}

void describe(const stompp_network* network) {
  stompp_description d;
  stompp_describe(network, &d, nullptr);
  std::printf("%" PRId64 " bytes in the file, %" PRId64 " of weights in memory, kernels: %s\n", d.file_bytes,
              d.weight_bytes, d.implementation);
  for (int32_t i = 0; i < d.inputs; ++i) std::printf("input %s\n", stompp_input_name(network, i));
  for (int32_t i = 0; i < d.outputs; ++i) std::printf("output %s\n", stompp_output_name(network, i));
  constexpr const char* kArithmetic[] = {"binary", "binary weights", "float"};
  for (int32_t i = 0; i < d.layers; ++i) {
    stompp_layer layer;
    stompp_describe_layer(network, i, &layer, nullptr);
    std::printf("%-40s %-20s %-15s %" PRId64 " bytes\n", layer.name, layer.type, kArithmetic[layer.arithmetic],
                layer.weight_bytes);
  }
}

void print_top(const std::vector<float>& scores, int64_t classes, int top) {
  for (size_t row = 0; row < scores.size() / static_cast<size_t>(classes); ++row) {
    const float* from = scores.data() + row * static_cast<size_t>(classes);
    std::vector<int64_t> order(static_cast<size_t>(classes));
    std::iota(order.begin(), order.end(), int64_t{0});
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return from[a] > from[b]; });
    for (int64_t i = 0; i < std::min<int64_t>(top, classes); ++i)
      std::printf("%zu: class %" PRId64 " %.7g\n", row, order[static_cast<size_t>(i)],
                  static_cast<double>(from[order[static_cast<size_t>(i)]]));
  }
}

int run(stompp_network* network, const Options& options) {
  stompp_error error;
  stompp_description d;
  Array array;
  if (const std::string wrong = read_array(options.files[1], &array); !wrong.empty()) return fail(wrong);
  stompp_describe(network, &d, nullptr);
  std::vector<stompp_shape> shapes(static_cast<size_t>(d.outputs));
  int64_t arena = 0;
  if (stompp_plan(network, &array.shape, 1, shapes.data(), &arena, &error) != STOMPP_OK) return fail(error.text);
  std::vector<std::vector<float>> values;
  std::vector<stompp_output> outputs;
  for (const stompp_shape& shape : shapes) {
    int64_t count = 1;
    for (int i = 0; i < shape.rank; ++i) count *= shape.sizes[i];
    values.emplace_back(static_cast<size_t>(count));
    outputs.push_back({values.back().data(), count, shape});
  }
  const stompp_input input = {array.values.data(), array.shape};
  const stompp_run_options given = {options.threads, nullptr, nullptr};
  std::vector<double> seconds;
  for (int i = 0; i <= options.bench; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    if (stompp_run(network, &input, 1, outputs.data(), d.outputs, &given, &error) != STOMPP_OK) return fail(error.text);
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  if (options.bench == 0) {
    print_top(values[0], shapes[0].sizes[shapes[0].rank - 1], options.top);
    return 0;
  }
  const double first = seconds[0];
  std::sort(seconds.begin() + 1, seconds.end());
  std::printf("median %.3f ms, least %.3f ms, first %.3f ms, of %d runs with %d thread(s); arena %" PRId64 " bytes\n",
              1e3 * seconds[1 + static_cast<size_t>(options.bench) / 2], 1e3 * seconds[1], 1e3 * first, options.bench,
              options.threads, arena);
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, &options)) {
    std::fputs(kUsage, stderr);
    for (int32_t i = 0; stompp_implementation(i) != nullptr; ++i)
      std::fprintf(stderr, "%s%s", i == 0 ? "implementations here: " : ", ", stompp_implementation(i));
    std::fputs("\n", stderr);
    return 2;
  }
  stompp_network* network = nullptr;
  stompp_error error;
  const stompp_open_options given = {options.implementation};
  if (stompp_open(options.files[0].c_str(), &given, &network, &error) != STOMPP_OK) return fail(error.text);
  int result = 0;
  if (options.files.size() == 2)
    result = run(network, options);
  else
    describe(network);
  stompp_close(network);
  return result;
}
