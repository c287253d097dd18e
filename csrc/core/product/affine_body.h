// The kAffine epilogue (epilogue.h), written once for every instruction set: see base/target.h.

template <bool kFused>
STOMPP_TARGET_INLINE float multiply_add(float x, float scale, float bias) {
  return kFused ? fused_multiply_add(x, scale, bias) : x * scale + bias;
}

// Adds the residual of `count` outputs from n on, the first of which is element `first`.
template <class Type, bool kFused>
STOMPP_TARGET_INLINE void add_residual(const Epilogue& e, int64_t first, int64_t n, int count, float* y) {
  if (e.residual_scale == nullptr) {
    for (int i = 0; i < count; ++i) y[i] += static_cast<float>(Type::load(e.residual, first + i));
    return;
  }
  const float *scale = e.residual_scale + n, *bias = e.residual_bias + n;
  for (int i = 0; i < count; ++i)
    y[i] += multiply_add<kFused>(static_cast<float>(Type::load(e.residual, first + i)), scale[i], bias[i]);
}

// The affine values of `count` outputs of a row from n on.
template <bool kFused>
STOMPP_TARGET_INLINE void affine_values(const Epilogue& e, int64_t first, int64_t n, const int32_t* acc, int count,
                                        float* y) {
  const float *scale = e.scale + n, *bias = e.bias + n;
  for (int i = 0; i < count; ++i) y[i] = multiply_add<kFused>(static_cast<float>(acc[i]), scale[i], bias[i]);
  if (e.residual == nullptr) return;
  switch (e.residual_type) {
    case FloatType::kFloat32:
      return add_residual<Float32, kFused>(e, first, n, count, y);
    case FloatType::kFloat16:
      return add_residual<Float16, kFused>(e, first, n, count, y);
    case FloatType::kBFloat16:
      return add_residual<BFloat16, kFused>(e, first, n, count, y);
    case FloatType::kFloat64:
      return add_residual<Float64, kFused>(e, first, n, count, y);
  }
}

// ReActNet's RPReLU of `count` outputs from n on, each operation rounded on its own.
STOMPP_TARGET_INLINE void apply_rprelu(const Epilogue& e, int64_t n, int count, float* y) {
  const float *before = e.rprelu + n, *slope = before + e.N, *after = slope + e.N;
  for (int i = 0; i < count; ++i) {
    const float t = y[i] + before[i];
    y[i] = (t > 0.0f ? t : t * slope[i]) + after[i];
  }
}

// The sign bits of `count` outputs from n on.
STOMPP_TARGET_INLINE uint32_t sign_bits(const Epilogue& e, int64_t n, int count, const float* y) {
  uint32_t bits = 0;
  if (e.limits == nullptr) {
    for (int i = 0; i < count; ++i) bits |= y[i] < 0.0f ? 1u << i : 0u;
    return bits;
  }
  const float *low = e.limits + n, *high = low + e.N;
  for (int i = 0; i < count; ++i) bits |= ((y[i] < low[i]) | (y[i] > high[i])) ? 1u << i : 0u;
  return bits;
}

template <class Type>
STOMPP_TARGET_INLINE void store_elements(const float* y, int count, void* out, int64_t first) {
  for (int i = 0; i < count; ++i) Type::store(out, first + i, y[i]);
}

// `count` outputs of a row from n on.
STOMPP_TARGET_INLINE void affine_panel(const Epilogue& e, int64_t row, int64_t n, const int32_t* acc, int count) {
  const int64_t first = row * e.N + n;
  float y[kPanelOutputs];
  if (e.fused)
    affine_values<true>(e, first, n, acc, count, y);
  else
    affine_values<false>(e, first, n, acc, count, y);
  if (e.rprelu != nullptr) apply_rprelu(e, n, count, y);
  if (e.sign_words != nullptr) {
    const uint32_t bits = sign_bits(e, n, count, y);
    const int64_t shift = n % kWordBits;
    const bool whole_word = shift == 0 && (count == kWordBits || n + count == e.N);
    put_bits(e.sign_words + row * words_for(e.N) + n / kWordBits, shift, whole_word, count, bits);
    if (e.out == nullptr) return;
  }
  switch (e.out_type) {
    case FloatType::kFloat32:
      return store_elements<Float32>(y, count, e.out, first);
    case FloatType::kFloat16:
      return store_elements<Float16>(y, count, e.out, first);
    case FloatType::kBFloat16:
      return store_elements<BFloat16>(y, count, e.out, first);
    case FloatType::kFloat64:
      return store_elements<Float64>(y, count, e.out, first);
  }
}

STOMPP_TARGET void affine(const Epilogue& e, const Dots& dots) {
  constexpr int kWhole = static_cast<int>(kPanelOutputs);
  for (int64_t r = 0; r < dots.rows; ++r) {
    const int64_t row = dots.first_row + r, whole = dots.count / kWhole * kWhole;
    const int32_t* acc = dots.values + r * dots.stride;
    for (int64_t i = 0; i < whole; i += kWhole) affine_panel(e, row, dots.n + i, acc + i, kWhole);
    const int tail = static_cast<int>(dots.count - whole);
    if (tail != 0) affine_panel(e, row, dots.n + whole, acc + whole, tail);
  }
}
