#include "runtime/file/sha256.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

namespace stompp::runtime {
namespace {

alignas(16) constexpr uint32_t kRounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

#if defined(__x86_64__)
// Without the instructions this is two thirds of the time that a file of some megabytes takes to open.
bool has_instructions() {
  unsigned a, b, c, d;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || (c & bit_SSE4_1) == 0) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (b & bit_SHA) != 0;
}

__attribute__((target("sha,sse4.1"))) void add_block_by_instructions(const uint8_t* block, uint32_t* state) {
  const __m128i swap = _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3);
  // They want the state as the words a, b, e, f and c, d, g, h, highest first.
  const __m128i abcd = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state));
  const __m128i efgh = _mm_loadu_si128(reinterpret_cast<const __m128i*>(state + 4));
  const __m128i abef = _mm_shuffle_epi32(_mm_unpacklo_epi64(efgh, abcd), 0xb1);
  const __m128i cdgh = _mm_shuffle_epi32(_mm_unpackhi_epi64(efgh, abcd), 0xb1);
  __m128i even = cdgh, odd = abef, w[4];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    __m128i& words = w[i % 4];
    if (i < 4) {
      words = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block) + i), swap);
    } else {
      const __m128i earlier = _mm_alignr_epi8(w[(i + 3) % 4], w[(i + 2) % 4], 4);
      words = _mm_add_epi32(_mm_sha256msg1_epu32(words, w[(i + 1) % 4]), earlier);
      words = _mm_sha256msg2_epu32(words, w[(i + 3) % 4]);
    }
    const __m128i added = _mm_add_epi32(words, _mm_load_si128(reinterpret_cast<const __m128i*>(kRounds) + i));
    even = _mm_sha256rnds2_epu32(even, odd, added);
    odd = _mm_sha256rnds2_epu32(odd, even, _mm_shuffle_epi32(added, 0x0e));
  }
  const __m128i high = _mm_shuffle_epi32(_mm_add_epi32(odd, abef), 0xb1);
  const __m128i low = _mm_shuffle_epi32(_mm_add_epi32(even, cdgh), 0xb1);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state), _mm_unpackhi_epi64(high, low));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(state + 4), _mm_unpacklo_epi64(high, low));
}
#endif

uint32_t rotated(uint32_t x, int by) { return x >> by | x << (32 - by); }

}  // namespace

void Sha256::add_block(const uint8_t* block) {
#if defined(__x86_64__)
  static const bool by_instructions = has_instructions();
  if (by_instructions) return add_block_by_instructions(block, state_.data());
#endif
  uint32_t w[64];
  for (int i = 0; i < 16; ++i)
    w[i] = uint32_t{block[4 * i]} << 24 | uint32_t{block[4 * i + 1]} << 16 | uint32_t{block[4 * i + 2]} << 8 |
           uint32_t{block[4 * i + 3]};
  for (int i = 16; i < 64; ++i) {
    const uint32_t a = rotated(w[i - 15], 7) ^ rotated(w[i - 15], 18) ^ w[i - 15] >> 3;
    const uint32_t b = rotated(w[i - 2], 17) ^ rotated(w[i - 2], 19) ^ w[i - 2] >> 10;
    w[i] = w[i - 16] + a + w[i - 7] + b;
  }
  auto [a, b, c, d, e, f, g, h] = state_;
#pragma GCC unroll 8  // after eight rounds each name is again in its own register
  for (int i = 0; i < 64; ++i) {
    const uint32_t mixed = rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25);
    const uint32_t first = h + mixed + ((e & f) ^ (~e & g)) + kRounds[i] + w[i];
    const uint32_t second = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g;
    g = f;
    f = e;
    e = d + first;
    d = c;
    c = b;
    b = a;
    a = first + second;
  }
  const uint32_t added[8] = {a, b, c, d, e, f, g, h};
  for (size_t i = 0; i < 8; ++i) state_[i] += added[i];
}

void Sha256::update(const void* data, size_t size) {
  const uint8_t* from = static_cast<const uint8_t*>(data);
  while (size > 0) {
    const size_t held = size_ % 64, count = std::min(size, 64 - held);
    size_ += count;
    if (count == 64) {
      add_block(from);
    } else {
      std::memcpy(rest_.data() + held, from, count);
      if (held + count == 64) add_block(rest_.data());
    }
    from += count;
    size -= count;
  }
}

std::string Sha256::hex() {
  const uint64_t bits = size_ * 8;
  const uint8_t one = 0x80, zeros[64] = {};
  update(&one, 1);
  update(zeros, (120 - size_ % 64) % 64);
  uint8_t length[8];
  for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
  update(length, 8);
  std::string text;
  for (const uint32_t word : state_)
    for (int shift = 28; shift >= 0; shift -= 4) text += "0123456789abcdef"[word >> shift & 15];
  return text;
}

}  // namespace stompp::runtime
