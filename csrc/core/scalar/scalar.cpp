#include "core/scalar/scalar.h"

#include <cstring>

#include "core/elementwise.h"

namespace stompp {
namespace scalar {
namespace {

bool supported() { return true; }

uint32_t load_word(const uint8_t* bytes) {
  uint32_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

int64_t scratch_bytes(int64_t) { return 0; }
void prepare_rows(const RowBlock&, void*) {}

void multiply_block(const ProductBlock& block) {
  for (int64_t r = 0; r < block.rows.row_count; ++r)
    for (int64_t p = 0; p < block.panel_count; ++p) {
      const uint8_t* row = block.rows.bits + r * block.rows.row_stride;
      const uint8_t* panel = block.panels + p * block.rows.k_bytes * kPanelOutputs;
      int32_t pops[kPanelOutputs] = {};
      for (int64_t k = 0; k < block.rows.k_bytes; k += kWordBytes, panel += kPanelOutputs * kWordBytes) {
        const uint32_t a = load_word(row + k);
        for (int64_t n = 0; n < kPanelOutputs; ++n) pops[n] += popcount32(a ^ load_word(panel + n * kWordBytes));
      }
      int32_t* dots = block.dots + r * block.dot_stride + p * kPanelOutputs;
      for (int64_t n = 0; n < kPanelOutputs; ++n) dots[n] = block.K - 2 * pops[n];
    }
}

template <class Type>
void pack_row_as(const void* x, int64_t K, uint32_t* words) {
  for (int64_t i = 0; i < words_for(K); ++i) {
    const int64_t left = K - i * kWordBits;
    words[i] = elementwise::sign_word<Type>(x, i * kWordBits, left < kWordBits ? left : kWordBits);
  }
}

void pack_row(const void* x, FloatType type, int64_t K, uint32_t* words) {
  if (type == FloatType::kFloat32) return pack_row_as<Float32>(x, K, words);
  if (type == FloatType::kFloat16) return pack_row_as<Float16>(x, K, words);
  pack_row_as<BFloat16>(x, K, words);
}

void less_than(const int32_t* acc, int64_t stride, int64_t rows, const int32_t* thresholds, uint32_t* bits) {
  for (int64_t r = 0; r < rows; ++r, acc += stride) {
    bits[r] = 0;
    for (int i = 0; i < 32; ++i) bits[r] |= static_cast<uint32_t>(acc[i] < thresholds[i]) << i;
  }
}

void sum_bits(const uint32_t* words, int64_t count, int32_t* sums) { elementwise::sum_bits(words, count, sums); }

void pack_planes(const Planes& planes, int64_t begin, int64_t end) { elementwise::pack_planes(planes, begin, end); }
void affine(const Epilogue& epilogue, const Dots& dots) { elementwise::affine(epilogue, dots); }

void unpack_row(const uint32_t* words, FloatType type, int64_t K, void* out) {
  elementwise::unpack_row(words, type, K, out);
}

void progressive_forward(const ProgressiveRow& row) { elementwise::forward(row); }
void progressive_backward(const ProgressiveRow& row) { elementwise::backward(row); }

void refresh_words(const RefreshMask& refresh, uint32_t* words, int64_t begin, int64_t end) {
  elementwise::refresh_words(refresh, words, begin, end);
}

}  // namespace

const Implementation kImplementation = {
    "scalar",
    "portable C++, 32-bit XNOR + popcount",
    supported,
    {LayoutId::kWords, kWordBytes},
    scratch_bytes,
    prepare_rows,
    multiply_block,
    sum_bits,
    pack_row,
    pack_planes,
    unpack_row,
    less_than,
    affine,
    progressive_forward,
    progressive_backward,
    refresh_words,
};

}  // namespace scalar
}  // namespace stompp
