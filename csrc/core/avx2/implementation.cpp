#include "core/avx2/avx2.h"

#if defined(__x86_64__)

#include <immintrin.h>

#include "core/elementwise.h"

namespace stompp {
namespace avx2 {
namespace {

bool supported() {
  // These builtins also ask the operating system (XGETBV) whether it saves the vector registers.
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt");
}

STOMPP_AVX2 uint32_t less_than(const int32_t* acc, const int32_t* threshold, int64_t count) {
  if (count < 32) {
    uint32_t bits = 0;
    for (int64_t i = 0; i < count; ++i) bits |= static_cast<uint32_t>(acc[i] < threshold[i]) << i;
    return bits;
  }
  uint32_t bits = 0;
  for (int i = 0; i < 4; ++i) {
    const __m256i a = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(acc + 8 * i));
    const __m256i t = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(threshold + 8 * i));
    const int less = _mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(t, a)));
    bits |= static_cast<uint32_t>(less) << (8 * i);
  }
  return bits;
}

STOMPP_AVX2 void unpack_row(const uint32_t* words, FloatType type, int64_t K, void* out) {
  elementwise::unpack_row(words, type, K, out);
}

STOMPP_AVX2 void progressive_forward(const ProgressiveRow& row) { elementwise::forward(row); }
STOMPP_AVX2 void progressive_backward(const ProgressiveRow& row) { elementwise::backward(row); }

STOMPP_AVX2 void refresh_words(const RefreshMask& refresh, uint32_t* words, int64_t begin, int64_t end) {
  elementwise::refresh_words(refresh, words, begin, end);
}

}  // namespace

const Implementation kImplementation = {
    "avx2",
    "nibble lookup: popcounts for two rows at once from pshufb tables",
    supported,
    {LayoutId::kInterleavedBytes, 1},
    scratch_bytes,
    prepare_rows,
    multiply_block,
    pack_row,
    unpack_row,
    less_than,
    progressive_forward,
    progressive_backward,
    refresh_words,
};

}  // namespace avx2
}  // namespace stompp

#endif
