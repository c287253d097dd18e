// The kernels of signs/kernels.h, written once for every instruction set: see base/target.h. Two of them are what an
// instruction set may do faster.

// Says whether element i is below zero.
template <class Type>
STOMPP_TARGET_INLINE bool is_negative(const void* x, int64_t i) {
  return is_negative16<Type>(load16(x, i));
}

template <>
STOMPP_TARGET_INLINE bool is_negative<Float32>(const void* x, int64_t i) {
  return Float32::load(x, i) < 0.0f;
}

template <class Type>
STOMPP_TARGET_INLINE uint32_t sign_word(const void* x, int64_t first, int64_t count) {
  uint32_t word = 0;
  for (int64_t i = 0; i < count; ++i) word |= static_cast<uint32_t>(is_negative<Type>(x, first + i)) << i;
  return word;
}

STOMPP_TARGET_INLINE uint32_t sign_word(const void* x, FloatType type, int64_t first, int64_t count) {
  if (type == FloatType::kFloat32) return sign_word<Float32>(x, first, count);
  if (type == FloatType::kFloat16) return sign_word<Float16>(x, first, count);
  return sign_word<BFloat16>(x, first, count);
}

// Packs words of `count` neighbouring pixels from `pixel` on: bit k of word w is that of plane 32 w + k.
template <class Type>
STOMPP_TARGET_INLINE void pack_pixels(const Planes& planes, int64_t pixel, int count) {
  for (int64_t w = 0; w < words_for(planes.K); ++w) {
    const int64_t left = planes.K - w * kWordBits;
    const int bits = left < kWordBits ? static_cast<int>(left) : kWordBits;
    uint32_t words[kPlanePixels] = {};
    for (int k = 0; k < bits; ++k) {
      const int64_t plane = (w * kWordBits + k) * planes.stride + pixel;
      if (planes.limits.low == nullptr) {
        for (int i = 0; i < count; ++i) words[i] |= static_cast<uint32_t>(is_negative<Type>(planes.x, plane + i)) << k;
        continue;
      }
      const float low = planes.limits.low[w * kWordBits + k], high = planes.limits.high[w * kWordBits + k];
      for (int i = 0; i < count; ++i) {
        const float value = Type::load(planes.x, plane + i);
        words[i] |= static_cast<uint32_t>((value < low) | (value > high)) << k;
      }
    }
    for (int i = 0; i < count; ++i) planes.words[(pixel + i) * words_for(planes.K) + w] = words[i];
  }
}

// Loads `count` values from `first` on, of a type that is not fp64.
STOMPP_TARGET_INLINE void load_floats(const void* x, FloatType type, int64_t first, int64_t count, float* values) {
  if (type == FloatType::kFloat32)
    for (int64_t i = 0; i < count; ++i) values[i] = Float32::load(x, first + i);
  else if (type == FloatType::kFloat16)
    for (int64_t i = 0; i < count; ++i) values[i] = Float16::load(x, first + i);
  else
    for (int64_t i = 0; i < count; ++i) values[i] = BFloat16::load(x, first + i);
}

STOMPP_TARGET_INLINE uint32_t outside_word(const void* x, FloatType type, const Limits& limits, int64_t first,
                                           int64_t count) {
  float values[kWordBits];
  load_floats(x, type, first, count, values);
  uint32_t word = 0;
  for (int64_t i = 0; i < count; ++i)
    word |= static_cast<uint32_t>((values[i] < limits.low[first + i]) | (values[i] > limits.high[first + i])) << i;
  return word;
}

STOMPP_TARGET void pack_any_outside(const void* x, FloatType type, const Limits& limits, int64_t K, uint32_t* words) {
  for (int64_t i = 0; i < words_for(K); ++i) {
    const int64_t left = K - i * kWordBits;
    words[i] = outside_word(x, type, limits, i * kWordBits, left < kWordBits ? left : kWordBits);
  }
}

template <class Type>
STOMPP_TARGET_INLINE void pack_row_of(const void* x, int64_t K, uint32_t* words) {
  for (int64_t i = 0; i < words_for(K); ++i) {
    const int64_t left = K - i * kWordBits;
    words[i] = sign_word<Type>(x, i * kWordBits, left < kWordBits ? left : kWordBits);
  }
}

STOMPP_TARGET void pack_any_row(const void* x, FloatType type, int64_t K, uint32_t* words) {
  if (type == FloatType::kFloat32) return pack_row_of<Float32>(x, K, words);
  if (type == FloatType::kFloat16) return pack_row_of<Float16>(x, K, words);
  pack_row_of<BFloat16>(x, K, words);
}

template <class Type>
STOMPP_TARGET_INLINE void pack_planes(const Planes& planes, int64_t begin, int64_t end) {
  for (int64_t pixel = begin; pixel < end; pixel += kPlanePixels) {
    const int64_t left = end - pixel;
    pack_pixels<Type>(planes, pixel, left < kPlanePixels ? static_cast<int>(left) : kPlanePixels);
  }
}

STOMPP_TARGET void pack_planes(const Planes& planes, int64_t begin, int64_t end) {
  if (planes.type == FloatType::kFloat32) return pack_planes<Float32>(planes, begin, end);
  if (planes.type == FloatType::kFloat16) return pack_planes<Float16>(planes, begin, end);
  pack_planes<BFloat16>(planes, begin, end);
}

template <class Type>
STOMPP_TARGET_INLINE void unpack_word(void* out, int64_t first, uint32_t word, int count) {
  using Float = typename Type::Compute;
  for (int i = 0; i < count; ++i) Type::store(out, first + i, (word >> i & 1u) != 0 ? Float(-1) : Float(1));
}

template <class Type>
STOMPP_TARGET_INLINE void unpack_row(const uint32_t* words, int64_t K, void* out) {
  const int64_t whole = K / kWordBits;
  for (int64_t w = 0; w < whole; ++w) unpack_word<Type>(out, w * kWordBits, words[w], kWordBits);
  const int tail = static_cast<int>(K % kWordBits);
  if (tail != 0) unpack_word<Type>(out, whole * kWordBits, words[whole], tail);
}

STOMPP_TARGET void unpack_row(const uint32_t* words, FloatType type, int64_t K, void* out) {
  switch (type) {
    case FloatType::kFloat32:
      return unpack_row<Float32>(words, K, out);
    case FloatType::kFloat16:
      return unpack_row<Float16>(words, K, out);
    case FloatType::kBFloat16:
      return unpack_row<BFloat16>(words, K, out);
    case FloatType::kFloat64:
      return unpack_row<Float64>(words, K, out);
  }
}

constexpr PackKernels pack_kernels() {
  PackKernels kernels = {};
  kernels.pack_row = pack_any_row;
  kernels.pack_outside = pack_any_outside;
  kernels.pack_planes = pack_planes;
  kernels.unpack_row = unpack_row;
  return kernels;
}
