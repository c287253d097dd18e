#include "core/epilogue.h"

#include <cstring>

#include "core/bits.h"
#include "core/implementation.h"

namespace stompp {
namespace {

template <class Out>
void affine(const Epilogue& e, int64_t m, int64_t n, int64_t count, const int32_t* acc) {
  float y[kPanelOutputs];
  for (int64_t i = 0; i < count; ++i) y[i] = static_cast<float>(acc[i]) * e.scale[n + i] + e.bias[n + i];
  if (e.residual != nullptr)
    with_float_type(e.residual_type, [&](auto type) {
      using Residual = decltype(type);
      for (int64_t i = 0; i < count; ++i) y[i] += static_cast<float>(Residual::load(e.residual, m * e.N + n + i));
    });
  for (int64_t i = 0; i < count; ++i) Out::store(e.out, m * e.N + n + i, y[i]);
}

// Bits n .. n + 31 of a row of words; bits past the row's words are 0.
uint32_t read_bits(const uint32_t* row, int64_t words, int64_t n) {
  const int64_t word = n / kWordBits, shift = n % kWordBits;
  uint32_t bits = row[word] >> shift;
  if (shift != 0 && word + 1 < words) bits |= row[word + 1] << (kWordBits - shift);
  return bits;
}

void threshold(const Epilogue& e, const Implementation& implementation, int64_t m, int64_t n, int64_t count,
               const int32_t* acc) {
  const int64_t words = words_for(e.N);
  uint32_t bits = implementation.less_than(acc, e.thresholds + n, count);
  if (e.residual_words != nullptr) {
    const uint32_t residual = read_bits(e.residual_words + m * words, words, n);
    bits = (bits & ~residual) | (implementation.less_than(acc, e.thresholds + e.N + n, count) & residual);
  }
  bits = (bits ^ read_bits(e.flip_words, words, n)) & valid_bits(count, 0);

  // Groups whose outputs are no multiple of 32 share words, so bits are added to what stands there.
  uint32_t* row = static_cast<uint32_t*>(e.out) + m * words;
  const int64_t word = n / kWordBits, shift = n % kWordBits;
  row[word] |= bits << shift;
  if (shift != 0 && shift + count > kWordBits) row[word + 1] |= bits >> (kWordBits - shift);
}

int64_t panel_outputs(int64_t left) { return left < kPanelOutputs ? left : kPanelOutputs; }

}  // namespace

void finish(const Epilogue& e, const Implementation& implementation, int64_t m, int64_t n, int64_t count,
            const int32_t* acc) {
  switch (e.kind) {
    case Epilogue::Kind::kInt32:
      std::memcpy(static_cast<int32_t*>(e.out) + m * e.N + n, acc, static_cast<size_t>(count) * sizeof(int32_t));
      return;
    case Epilogue::Kind::kAffine:
      with_float_type(e.out_type, [&](auto type) {
        for (int64_t i = 0; i < count; i += kPanelOutputs)
          affine<decltype(type)>(e, m, n + i, panel_outputs(count - i), acc + i);
      });
      return;
    case Epilogue::Kind::kThreshold:
      for (int64_t i = 0; i < count; i += kPanelOutputs)
        threshold(e, implementation, m, n + i, panel_outputs(count - i), acc + i);
      return;
  }
}

}  // namespace stompp
