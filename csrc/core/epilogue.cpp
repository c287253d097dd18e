#include "core/epilogue.h"

#include <cstring>

#include "core/bits.h"
#include "core/implementation.h"

namespace stompp {
namespace {

// Bits n .. n + 31 of a row of words; bits past the row's words are 0.
uint32_t read_bits(const uint32_t* row, int64_t words, int64_t n) {
  const int64_t word = n / kWordBits, shift = n % kWordBits;
  uint32_t bits = row[word] >> shift;
  if (shift != 0 && word + 1 < words) bits |= row[word + 1] << (kWordBits - shift);
  return bits;
}

// Outputs n .. n + count - 1 of one panel; `acc` is that of the first row.
void threshold_panel(const Epilogue& e, const Implementation& implementation, const Dots& dots, int64_t n,
                     int64_t count, const int32_t* acc) {
  const int64_t words = words_for(e.N), word = n / kWordBits, shift = n % kWordBits;
  const uint32_t flip = read_bits(e.flip_words, words, n), valid = valid_bits(count, 0);
  uint32_t bits[2][kBlockRows];
  for (int64_t set = 0; set < (e.residual_words == nullptr ? 1 : 2); ++set) {
    int32_t thresholds[kPanelOutputs] = {};
    std::memcpy(thresholds, e.thresholds + set * e.N + n, static_cast<size_t>(count) * sizeof(int32_t));
    implementation.less_than(acc, dots.stride, dots.rows, thresholds, bits[set]);
  }
  for (int64_t r = 0; r < dots.rows; ++r) {
    const int64_t m = dots.first_row + r;
    uint32_t result = bits[0][r];
    if (e.residual_words != nullptr) {
      const uint32_t residual = read_bits(e.residual_words + m * words, words, n);
      result = (result & ~residual) | (bits[1][r] & residual);
    }
    result = (result ^ flip) & valid;
    // Groups whose outputs are no multiple of 32 share words, so bits are added to what stands there.
    uint32_t* row = static_cast<uint32_t*>(e.out) + m * words;
    row[word] |= result << shift;
    if (shift != 0 && shift + count > kWordBits) row[word + 1] |= result >> (kWordBits - shift);
  }
}

}  // namespace

void finish(const Epilogue& e, const Implementation& implementation, const Dots& dots) {
  switch (e.kind) {
    case Epilogue::Kind::kInt32:
      for (int64_t r = 0; r < dots.rows; ++r)
        std::memcpy(static_cast<int32_t*>(e.out) + (dots.first_row + r) * e.N + dots.n, dots.values + r * dots.stride,
                    static_cast<size_t>(dots.count) * sizeof(int32_t));
      return;
    case Epilogue::Kind::kAffine:
      implementation.affine(e, dots);
      return;
    case Epilogue::Kind::kThreshold:
      for (int64_t i = 0; i < dots.count; i += kPanelOutputs) {
        const int64_t left = dots.count - i;
        threshold_panel(e, implementation, dots, dots.n + i, left < kPanelOutputs ? left : kPanelOutputs,
                        dots.values + i);
      }
      return;
  }
}

}  // namespace stompp
