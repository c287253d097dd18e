// The kernels of masks/kernels.h, written once for every instruction set: see base/target.h.

#if defined(STOMPP_ONLY_INFERENCE)  // as libstompp is compiled, which has no masks

constexpr MaskKernels mask_kernels() { return {}; }

#else

// Computes `count` entries from `first` on; bit i of `frozen` says whether entry i is. The count is a constant for
// whole words. Loads and stores are loops of their own around local arrays: the buffers might alias, and only so can
// the arithmetic between be vectorized.
template <class Type, bool kGate>
STOMPP_TARGET_INLINE void forward_word(const ProgressiveRow& row, int64_t first, uint32_t frozen, int count) {
  using Float = typename Type::Compute;
  Float u[kWordBits], result[kWordBits];
  for (int i = 0; i < count; ++i) u[i] = Type::load(row.u, first + i);
  if (kGate) {
    uint32_t inside = 0;
    for (int i = 0; i < count; ++i) {
      const Float magnitude = u[i] < Float(0) ? -u[i] : u[i];
      inside |= magnitude <= Float(1) ? uint32_t{1} << i : 0u;
    }
    const uint32_t committed = row.surrogate == Surrogate::kNone       ? 0
                               : row.surrogate == Surrogate::kIdentity ? 0xffffffffu
                                                                       : inside;
    const uint32_t gate = row.surrogate == Surrogate::kApproxSign ? frozen : (frozen & committed) | (~frozen & inside);
    row.gate[first / kWordBits] = gate & valid_bits(count, 0);
  }
  for (int i = 0; i < count; ++i) {
    const Float sign = u[i] < Float(0) ? Float(-1) : Float(1);
    const Float low = u[i] < Float(-1) ? Float(-1) : u[i];  // NaN fails both comparisons and stays
    const Float clip = low > Float(1) ? Float(1) : low;
    result[i] = (frozen >> i & 1u) != 0 ? sign : clip;
  }
  for (int i = 0; i < count; ++i) Type::store(row.out, first + i, result[i]);
}

template <class Type, Surrogate kSurrogate>
STOMPP_TARGET_INLINE void backward_word(const ProgressiveRow& row, int64_t first, uint32_t frozen, int count) {
  using Float = typename Type::Compute;
  Float u[kWordBits], grad[kWordBits], result[kWordBits];
  for (int i = 0; i < count; ++i) u[i] = Type::load(row.u, first + i);
  for (int i = 0; i < count; ++i) grad[i] = Type::load(row.grad, first + i);
  for (int i = 0; i < count; ++i) {
    const Float magnitude = u[i] < Float(0) ? -u[i] : u[i];
    const Float clipped = magnitude <= Float(1) ? grad[i] : Float(0);
    Float committed = Float(0);
    if (kSurrogate == Surrogate::kIdentity) committed = grad[i];
    if (kSurrogate == Surrogate::kClip) committed = clipped;
    if (kSurrogate == Surrogate::kApproxSign) {
      const Float scaled = grad[i] * (Float(2) - Float(2) * magnitude);
      committed = magnitude <= Float(1) ? scaled : Float(0);
    }
    result[i] = (frozen >> i & 1u) != 0 ? committed : clipped;
  }
  for (int i = 0; i < count; ++i) Type::store(row.out, first + i, result[i]);
}

// Compares the 32 random words of the entries of mask word `index` with two limits.
STOMPP_TARGET_INLINE void random_below(const RandomStream& stream, int64_t index, uint64_t limit, uint64_t other_limit,
                                       uint32_t* below, uint32_t* below_other) {
  constexpr int kGroups = static_cast<int>(kWordBits) / 4;
  *below = *below_other = 0;
  for (int group = 0; group < kGroups; ++group) {
    uint32_t random[4] = {static_cast<uint32_t>(index * kGroups + group), static_cast<uint32_t>(stream.seed >> 32),
                          static_cast<uint32_t>(stream.step), static_cast<uint32_t>(stream.step >> 32)};
    philox4x32_10(random, static_cast<uint32_t>(stream.seed), stream.tensor_id);
    for (int lane = 0; lane < 4; ++lane) {
      *below |= static_cast<uint32_t>(random[lane] < limit) << (group * 4 + lane);
      *below_other |= static_cast<uint32_t>(random[lane] < other_limit) << (group * 4 + lane);
    }
  }
}

STOMPP_TARGET_INLINE uint32_t frozen_word(const ProgressiveRow& row, int64_t index) {
  if (row.drawn != nullptr) {
    const uint64_t limit = row.drawn->one_below;
    uint32_t frozen, same;
    random_below(row.drawn->stream, row.first_word + index, limit, limit, &frozen, &same);
    return frozen;
  }
  return row.mask == nullptr ? 0xffffffffu : row.mask[index];
}

template <class Type, bool kGate>
STOMPP_TARGET_INLINE void forward(const ProgressiveRow& row) {
  const int64_t whole = row.count / kWordBits;
  for (int64_t w = 0; w < whole; ++w) forward_word<Type, kGate>(row, w * kWordBits, frozen_word(row, w), kWordBits);
  const int tail = static_cast<int>(row.count % kWordBits);
  if (tail != 0) forward_word<Type, kGate>(row, whole * kWordBits, frozen_word(row, whole), tail);
}

template <class Type>
STOMPP_TARGET_INLINE void forward(const ProgressiveRow& row) {
  row.gate == nullptr ? forward<Type, false>(row) : forward<Type, true>(row);
}

STOMPP_TARGET void progressive_forward(const ProgressiveRow& row) {
  switch (row.type) {
    case FloatType::kFloat32:
      return forward<Float32>(row);
    case FloatType::kFloat16:
      return forward<Float16>(row);
    case FloatType::kBFloat16:
      return forward<BFloat16>(row);
    case FloatType::kFloat64:
      return forward<Float64>(row);
  }
}

template <class Type, Surrogate kSurrogate>
STOMPP_TARGET_INLINE void backward(const ProgressiveRow& row) {
  const int64_t whole = row.count / kWordBits;
  for (int64_t w = 0; w < whole; ++w)
    backward_word<Type, kSurrogate>(row, w * kWordBits, frozen_word(row, w), kWordBits);
  const int tail = static_cast<int>(row.count % kWordBits);
  if (tail != 0) backward_word<Type, kSurrogate>(row, whole * kWordBits, frozen_word(row, whole), tail);
}

template <class Type>
STOMPP_TARGET_INLINE void backward(const ProgressiveRow& row) {
  switch (row.surrogate) {
    case Surrogate::kNone:
      return backward<Type, Surrogate::kNone>(row);
    case Surrogate::kIdentity:
      return backward<Type, Surrogate::kIdentity>(row);
    case Surrogate::kClip:
      return backward<Type, Surrogate::kClip>(row);
    case Surrogate::kApproxSign:
      return backward<Type, Surrogate::kApproxSign>(row);
  }
}

STOMPP_TARGET void progressive_backward(const ProgressiveRow& row) {
  switch (row.type) {
    case FloatType::kFloat32:
      return backward<Float32>(row);
    case FloatType::kFloat16:
      return backward<Float16>(row);
    case FloatType::kBFloat16:
      return backward<BFloat16>(row);
    case FloatType::kFloat64:
      return backward<Float64>(row);
  }
}

// A gradient is copied bit for bit, or is 0: integers of the type's size do.
template <class Bits>
STOMPP_TARGET_INLINE void gate_word(const GateRow& row, int64_t first, uint32_t gate, int count) {
  Bits grad[kWordBits], result[kWordBits];
  const size_t bytes = static_cast<size_t>(count) * sizeof(Bits);
  std::memcpy(grad, static_cast<const char*>(row.grad) + first * static_cast<int64_t>(sizeof(Bits)), bytes);
  for (int i = 0; i < count; ++i) result[i] = (gate >> i & 1u) != 0 ? grad[i] : Bits{0};
  std::memcpy(static_cast<char*>(row.out) + first * static_cast<int64_t>(sizeof(Bits)), result, bytes);
}

template <class Bits>
STOMPP_TARGET_INLINE void gate_backward(const GateRow& row) {
  const int64_t whole = row.count / kWordBits;
  for (int64_t w = 0; w < whole; ++w) gate_word<Bits>(row, w * kWordBits, row.gate[w], kWordBits);
  const int tail = static_cast<int>(row.count % kWordBits);
  if (tail != 0) gate_word<Bits>(row, whole * kWordBits, row.gate[whole], tail);
}

STOMPP_TARGET void gate_backward(const GateRow& row) {
  switch (size_of(row.type)) {
    case 2:
      return gate_backward<uint16_t>(row);
    case 4:
      return gate_backward<uint32_t>(row);
    default:
      return gate_backward<uint64_t>(row);
  }
}

STOMPP_TARGET void refresh_words(const RefreshMask& refresh, uint32_t* words, int64_t begin, int64_t end) {
  for (int64_t w = begin; w < end; ++w) {
    uint32_t ones, redrawn;
    random_below(refresh.stream, w, refresh.one_below, refresh.redraw_below, &ones, &redrawn);
    words[w] = ((words[w] & ~redrawn) | ones) & valid_bits(refresh.n, w);
  }
}

constexpr MaskKernels mask_kernels() {
  MaskKernels kernels = {};
  kernels.progressive_forward = progressive_forward;
  kernels.progressive_backward = progressive_backward;
  kernels.gate_backward = gate_backward;
  kernels.refresh_words = refresh_words;
  return kernels;
}

#endif
