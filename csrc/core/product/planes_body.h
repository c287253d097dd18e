// The kernels of bit_planes.h, written once for every instruction set: see base/target.h.

// Vectors of words, in the registers of whatever target the body is compiled for. gcc unrolls loops over small arrays
// before it vectorizes them, and then does not.
using Words = uint32_t __attribute__((vector_size(32)));
using FourWords = uint32_t __attribute__((vector_size(16)));

template <class V>
STOMPP_TARGET_INLINE void load_difference(const TapBlock& block, int64_t tap, int64_t first, V* difference) {
  V weights;
  std::memcpy(difference, block.x[tap] + first, sizeof(V));
  std::memcpy(&weights, block.weights[tap] + first, sizeof(V));
  *difference ^= weights;
}

// Adds the bits of b and c to those of `sum` and leaves the carries in b.
template <class V>
STOMPP_TARGET_INLINE void carry_save(V* sum, V* b, const V& c) {
  const V half = *sum ^ *b;
  *b = (*sum & *b) | (half & c);
  *sum = half ^ c;
}

// Adds bits of value 2^kFirst to the planes; `carry` is used up.
template <int kFirst, int kPlanes, class V>
STOMPP_TARGET_INLINE void add_bits(V* carry, V (&planes)[kPlanes]) {
#pragma GCC unroll 8
  for (int p = kFirst; p < kPlanes; ++p) {
    const V both = planes[p] & *carry;
    planes[p] ^= *carry;
    *carry = both;
  }
}

// Adds up the taps of a V of words from `first` on: four taps at a time, whose carries meet before they go up.
template <int kPlanes, class V>
STOMPP_TARGET_INLINE void count_step(const TapBlock& block, int64_t first) {
  V planes[kPlanes];
#pragma GCC unroll 8
  for (int p = 0; p < kPlanes; ++p) planes[p] = V{};
  int64_t tap = 0;
  for (; tap + 4 <= block.taps; tap += 4) {
    V differ[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) load_difference(block, tap + i, first, &differ[i]);
    carry_save(&planes[0], &differ[0], differ[1]);
    carry_save(&planes[0], &differ[2], differ[3]);
    carry_save(&planes[1], &differ[0], differ[2]);
    add_bits<2>(&differ[0], planes);
  }
  for (; tap < block.taps; ++tap) {
    V differ;
    load_difference(block, tap, first, &differ);
    add_bits<0>(&differ, planes);
  }
#pragma GCC unroll 8
  for (int p = 0; p < kPlanes; ++p)
    if (p < block.plane_count) std::memcpy(block.planes + p * kPlaneWords + first, &planes[p], sizeof(V));
}

template <int kPlanes>
STOMPP_TARGET_INLINE void count_taps(const TapBlock& block) {
  int64_t first = 0;
  for (; first + 8 <= block.words; first += 8) count_step<kPlanes, Words>(block, first);
  for (; first + 4 <= block.words; first += 4) count_step<kPlanes, FourWords>(block, first);
  for (; first < block.words; ++first) count_step<kPlanes, uint32_t>(block, first);
}

// The cases are kernels of single channels up to 3x3, up to 7x7, groups of 8 up to 3x3, and any.
STOMPP_TARGET void count_taps(const TapBlock& block) {
  if (block.plane_count <= 4) return count_taps<4>(block);
  if (block.plane_count <= 6) return count_taps<6>(block);
  if (block.plane_count <= 8) return count_taps<8>(block);
  count_taps<kMaxPlanes>(block);
}

STOMPP_TARGET void compare_planes(const PlaneComparison& c) {
  for (int64_t j = 0; j < c.words; ++j) c.at_least[j] = 0xffffffffu;
  for (int p = 0; p < c.plane_count; ++p) {
    const uint32_t* counts = c.planes + p * kPlaneWords;
    const uint32_t* limits = c.limits + p * kPlaneWords;
    uint32_t* __restrict at_least = c.at_least;
    // A higher bit decides where it differs, else what the lower ones decided stands.
    for (int64_t j = 0; j < c.words; ++j)
      at_least[j] = (counts[j] & ~limits[j]) | (~(counts[j] ^ limits[j]) & at_least[j]);
  }
}

STOMPP_TARGET void planes_to_dots(const uint32_t* planes, int plane_count, int64_t words, int32_t start,
                                  int32_t* dots) {
  const Words lanes = {0, 1, 2, 3, 4, 5, 6, 7}, first = Words{} + static_cast<uint32_t>(start);
  for (int64_t j = 0; j < words; ++j, dots += kWordBits) {
    Words counts[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) counts[i] = Words{};
    for (int p = plane_count - 1; p >= 0; --p) {
      const Words word = Words{} + planes[p * kPlaneWords + j];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        counts[i] = counts[i] + counts[i] + (word >> (lanes + 8u * static_cast<uint32_t>(i)) & 1u);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const Words result = first - (counts[i] + counts[i]);
      std::memcpy(dots + 8 * i, &result, sizeof(result));
    }
  }
}

constexpr PlaneKernels plane_kernels() {
  PlaneKernels kernels = {};
  kernels.count_taps = count_taps;
  kernels.compare_planes = compare_planes;
  kernels.planes_to_dots = planes_to_dots;
  return kernels;
}
