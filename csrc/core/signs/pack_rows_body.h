// The kernels of signs/kernels.h that walk along a row, of an instruction set that takes 32 floats at once: see
// base/target.h. Include it after pack_body.h and these three functions:
//
//     uint32_t sign_word_fp32(const float* x);                                         // the signs of 32 floats
//     uint32_t sign_word_16(const uint16_t* x, uint16_t minus_infinity);               // those of 32 floats of 16 bits
//     uint32_t outside_word(const float* x, const float* low, const float* high);  // which are outside

STOMPP_TARGET void pack_row(const void* x, FloatType type, int64_t K, uint32_t* words) {
  const int64_t whole = K / kWordBits, tail = K % kWordBits;
  if (type == FloatType::kFloat32) {
    const float* values = static_cast<const float*>(x);
    for (int64_t i = 0; i < whole; ++i) words[i] = sign_word_fp32(values + i * kWordBits);
  } else {
    const uint16_t* values = static_cast<const uint16_t*>(x);
    const uint16_t minus_infinity = type == FloatType::kFloat16 ? Float16::kMinusInfinity : BFloat16::kMinusInfinity;
    for (int64_t i = 0; i < whole; ++i) words[i] = sign_word_16(values + i * kWordBits, minus_infinity);
  }
  if (tail != 0) words[whole] = sign_word(x, type, whole * kWordBits, tail);
}

STOMPP_TARGET void pack_outside(const void* x, FloatType type, const Limits& limits, int64_t K, uint32_t* words) {
  const int64_t whole = K / kWordBits, tail = K % kWordBits;
  float values[kWordBits];
  for (int64_t i = 0; i < whole; ++i) {
    const int64_t first = i * kWordBits;
    const float* row = static_cast<const float*>(x) + first;
    if (type != FloatType::kFloat32) load_floats(x, type, first, kWordBits, values);
    words[i] = outside_word(type == FloatType::kFloat32 ? row : values, limits.low + first, limits.high + first);
  }
  if (tail != 0) words[whole] = outside_word(x, type, limits, whole * kWordBits, tail);
}

constexpr PackKernels faster_pack_kernels() {
  PackKernels kernels = pack_kernels();
  kernels.pack_row = pack_row;
  kernels.pack_outside = pack_outside;
  return kernels;
}
