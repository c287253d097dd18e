// Loads and stores of the floating-point types that tensors come in. Conversions round to nearest even.
#pragma once

#include <cstdint>
#include <cstring>

namespace stompp {

enum class FloatType { kFloat32, kFloat16, kBFloat16, kFloat64 };

constexpr int64_t size_of(FloatType type) {
  return type == FloatType::kFloat64 ? 8 : type == FloatType::kFloat32 ? 4 : 2;
}

template <class To, class From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline uint32_t select(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}

// Neither of these two conversions has a branch, so that loops of them are vectorized.
inline float half_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16, magnitude = h & 0x7fffu;
  // A magnitude below 2^-14 is zero or subnormal: a multiple of 2^-24, exact in fp32.
  const uint32_t small =
      bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(magnitude)) * 5.9604644775390625e-8f);
  const uint32_t normal = (magnitude << 13) + (112u << 23), infinite = 0x7f800000u | (magnitude & 0x3ffu) << 13;
  const uint32_t finite = select(magnitude < 0x0400u, small, normal);
  return bit_cast<float>(sign | select(magnitude >= 0x7c00u, infinite, finite));
}

inline uint16_t float_to_half(float f) {
  const uint32_t bits = bit_cast<uint32_t>(f), sign = (bits >> 16) & 0x8000u, x = bits & 0x7fffffffu;
  // Below 2^-14 the unit of a half is 2^-24, which is the fp32 unit at 0.5: the addition does the rounding.
  const uint32_t small = bit_cast<uint32_t>(bit_cast<float>(x) + 0.5f) - 0x3f000000u;
  const uint32_t normal = (x + 0xfffu + ((x >> 13) & 1u) - (112u << 23)) >> 13;
  const uint32_t finite = select(x < 0x38800000u, small, normal);
  const uint32_t bounded = select(x >= 0x477ff000u, 0x7c00u, finite);  // 65520 and above round to infinity
  return static_cast<uint16_t>(sign | select(x > 0x7f800000u, 0x7e00u, bounded));
}

inline float bfloat16_to_float(uint16_t b) { return bit_cast<float>(static_cast<uint32_t>(b) << 16); }

inline uint16_t float_to_bfloat16(float f) {
  const uint32_t x = bit_cast<uint32_t>(f);
  if ((x & 0x7fffffffu) > 0x7f800000u) return 0x7fc0u;
  return static_cast<uint16_t>((x + 0x7fffu + ((x >> 16) & 1u)) >> 16);
}

// Each struct is an element type: how it lies in memory, and the type arithmetic on it is done in. Pointers need no
// alignment.
struct Float32 {
  using Compute = float;
  static float load(const void* p, int64_t i) {
    float value;
    std::memcpy(&value, static_cast<const char*>(p) + 4 * i, 4);
    return value;
  }
  static void store(void* p, int64_t i, float value) { std::memcpy(static_cast<char*>(p) + 4 * i, &value, 4); }
};

struct Float64 {
  using Compute = double;
  static double load(const void* p, int64_t i) {
    double value;
    std::memcpy(&value, static_cast<const char*>(p) + 8 * i, 8);
    return value;
  }
  static void store(void* p, int64_t i, double value) { std::memcpy(static_cast<char*>(p) + 8 * i, &value, 8); }
};

inline uint16_t load16(const void* p, int64_t i) {
  uint16_t bits;
  std::memcpy(&bits, static_cast<const char*>(p) + 2 * i, 2);
  return bits;
}

inline void store16(void* p, int64_t i, uint16_t bits) { std::memcpy(static_cast<char*>(p) + 2 * i, &bits, 2); }

struct Float16 {
  using Compute = float;
  static constexpr uint16_t kMinusInfinity = 0xfc00u;
  static float load(const void* p, int64_t i) { return half_to_float(load16(p, i)); }
  static void store(void* p, int64_t i, float value) { store16(p, i, float_to_half(value)); }
};

struct BFloat16 {
  using Compute = float;
  static constexpr uint16_t kMinusInfinity = 0xff80u;
  static float load(const void* p, int64_t i) { return bfloat16_to_float(load16(p, i)); }
  static void store(void* p, int64_t i, float value) { store16(p, i, float_to_bfloat16(value)); }
};

// A 16-bit float is below zero exactly when its bits lie in (-0.0, -infinity]; what lies above is a NaN.
template <class Type>
inline bool is_negative16(uint16_t bits) {
  return bits > 0x8000u && bits <= Type::kMinusInfinity;
}

// Calls f with a value of the struct above that describes `type`.
template <class F>
inline auto with_float_type(FloatType type, const F& f) {
  switch (type) {
    case FloatType::kFloat16:
      return f(Float16{});
    case FloatType::kBFloat16:
      return f(BFloat16{});
    case FloatType::kFloat64:
      return f(Float64{});
    default:
      return f(Float32{});
  }
}

}  // namespace stompp
