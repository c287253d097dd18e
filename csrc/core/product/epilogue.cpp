#include "core/product/epilogue.h"

#include <cstring>

#include "core/base/bits.h"
#include "core/product/kernels.h"

namespace stompp {
namespace {

// Returns bits n .. n + 31 of a row of words; bits past the row's words are 0.
uint32_t read_bits(const uint32_t* row, int64_t words, int64_t n) {
  const int64_t word = n / kWordBits, shift = n % kWordBits;
  uint32_t bits = row[word] >> shift;
  if (shift != 0 && word + 1 < words) bits |= row[word + 1] << (kWordBits - shift);
  return bits;
}

// Writes outputs n .. n + count - 1, of one panel, of `rows` rows. `bits[set]` are the comparisons with each set of
// thresholds, `stride` words from row to row.
void write_panel(const Epilogue& e, int64_t first_row, int64_t rows, int64_t n, int64_t count,
                 const uint32_t* const (&bits)[2], int64_t stride) {
  const int64_t words = words_for(e.N), word = n / kWordBits, shift = n % kWordBits;
  const uint32_t flip = read_bits(e.flip_words, words, n), valid = valid_bits(count, 0);
  const bool whole_word = shift == 0 && (count == kWordBits || n + count == e.N);
  uint32_t* out = static_cast<uint32_t*>(e.out) + first_row * words + word;
  const uint32_t* residuals = e.residual_words == nullptr ? nullptr : e.residual_words + first_row * words;
  for (int64_t r = 0; r < rows; ++r, out += words) {
    uint32_t result = bits[0][r * stride];
    if (residuals != nullptr) {
      const uint32_t residual = read_bits(residuals + r * words, words, n);
      result = (result & ~residual) | (bits[1][r * stride] & residual);
    }
    put_bits(out, shift, whole_word, count, (result ^ flip) & valid);
  }
}

int64_t panel_outputs(const Dots& dots, int64_t i) {
  return dots.count - i < kPanelOutputs ? dots.count - i : kPanelOutputs;
}

// Writes outputs n + i and on of one panel, i a multiple of kPanelOutputs.
void threshold_panel(const Epilogue& e, const ProductKernels& kernels, const Dots& dots, int64_t i) {
  const int64_t n = dots.n + i, count = panel_outputs(dots, i);
  uint32_t bits[2][kBlockRows];
  for (int64_t set = 0; set < e.threshold_sets(); ++set) {
    int32_t thresholds[kPanelOutputs] = {};
    std::memcpy(thresholds, e.thresholds + set * e.N + n, static_cast<size_t>(count) * sizeof(int32_t));
    kernels.less_than(dots.values + i, dots.stride, dots.rows, thresholds, bits[set]);
  }
  write_panel(e, dots.first_row, dots.rows, n, count, {bits[0], bits[1]}, 1);
}

}  // namespace

void finish(const Epilogue& e, const ProductKernels& kernels, const Dots& dots) {
  switch (e.kind) {
    case Epilogue::Kind::kInt32:
      for (int64_t r = 0; r < dots.rows; ++r)
        std::memcpy(static_cast<int32_t*>(e.out) + (dots.first_row + r) * e.N + dots.n, dots.values + r * dots.stride,
                    static_cast<size_t>(dots.count) * sizeof(int32_t));
      return;
    case Epilogue::Kind::kAffine:
      kernels.affine(e, dots);
      return;
    case Epilogue::Kind::kThreshold:
      for (int64_t i = 0; i < dots.count; i += kPanelOutputs) threshold_panel(e, kernels, dots, i);
      return;
  }
}

void finish_bits(const Epilogue& e, const Dots& dots, const uint32_t* bits) {
  for (int64_t i = 0; i < dots.count; i += kPanelOutputs) {
    const uint32_t* panel = bits + i / kPanelOutputs;
    write_panel(e, dots.first_row, dots.rows, dots.n + i, panel_outputs(dots, i),
                {panel, panel + kBlockRows * kBlockPanels}, kBlockPanels);
  }
}

void clear_bits(const Epilogue& e, int64_t first_row, int64_t rows) {
  uint32_t* bits = e.kind == Epilogue::Kind::kThreshold ? static_cast<uint32_t*>(e.out) : e.sign_words;
  if (bits == nullptr) return;
  const int64_t words = words_for(e.N);
  std::memset(bits + first_row * words, 0, static_cast<size_t>(rows * words) * kWordBytes);
}

}  // namespace stompp
