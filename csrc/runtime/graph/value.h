// What travels between the steps of a network.
#pragma once

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "core/base/bits.h"
#include "core/base/parallel.h"
#include "runtime/stompp.h"

// Beside its type, where algorithms look for it.
inline bool operator==(const stompp_shape& a, const stompp_shape& b) {
  return a.rank == b.rank && std::equal(a.sizes, a.sizes + a.rank, b.sizes);
}

namespace stompp::runtime {

using Shape = stompp_shape;

// What a value or a weight takes at most. With 32 bits the addresses must do for all of them.
constexpr int64_t kMostBytes = sizeof(void*) > 4 ? int64_t{1} << 40 : int64_t{1} << 28;

inline std::vector<int64_t> sizes_of(const Shape& shape) { return {shape.sizes, shape.sizes + shape.rank}; }

inline Shape shape_of(std::initializer_list<int64_t> sizes) {
  Shape shape = {};
  for (const int64_t size : sizes) shape.sizes[shape.rank++] = size;
  return shape;
}

// Returns the largest number for more: a file's sizes may be chosen so that their product is another's modulo 2^64.
inline int64_t product(const Shape& shape, int first = 0) {
  int64_t count = 1;
  for (int i = first; i < shape.rank; ++i)
    if (__builtin_mul_overflow(count, shape.sizes[i], &count)) return std::numeric_limits<int64_t>::max();
  return count;
}

// Floats of four dimensions are images [N, C, H, W] whose channels lie side by side, [N, H, W, C]; all others lie
// row-major. Bits are [..., C], each row in words_for(C) words.
struct Value {
  enum class Kind { kNone, kFloats, kBits, kSizes };

  Kind kind = Kind::kNone;
  Shape shape = {};  // of kSizes: the numbers themselves
  int buffer = -1;   // of the arena
  const float* constant = nullptr;

  int64_t last() const { return shape.sizes[shape.rank - 1]; }
  int64_t rows() const { return product(shape) / last(); }  // of bits, and of floats that are no images
  int64_t bytes() const { return (kind == Kind::kBits ? rows() * words_for(last()) : product(shape)) * 4; }
};

// Returns the dimension whose neighbours are the i-th nearest in memory: of floats as they lie here, or row-major.
inline int nearest(const Shape& shape, int i, bool as_images) {
  constexpr int kImages[] = {1, 3, 2, 0};
  return as_images ? kImages[i] : shape.rank - 1 - i;
}

inline Shape strides_in_order(const Shape& shape, bool as_images) {
  Shape strides = shape;
  int64_t step = 1;
  for (int i = 0; i < shape.rank; ++i) {
    const int dim = nearest(shape, i, as_images);
    strides.sizes[dim] = step;
    step *= shape.sizes[dim];
  }
  return strides;
}

// Returns the distance of neighbours in each dimension of floats, as they lie.
inline Shape strides_of(const Shape& shape) { return strides_in_order(shape, shape.rank == 4); }
inline Shape row_major_strides(const Shape& shape) { return strides_in_order(shape, false); }

// One call of the network: where its values lie, and the threads that it has.
struct Frame {
  uint8_t* arena;
  const int64_t* offsets;  // of buffers
  Parallel pool;

  float* floats(const Value& value) const {
    return value.constant != nullptr ? const_cast<float*>(value.constant) : static_cast<float*>(at(value));
  }
  uint8_t* bytes(const Value& value) const { return reinterpret_cast<uint8_t*>(floats(value)); }
  uint32_t* words(const Value& value) const { return static_cast<uint32_t*>(at(value)); }

  // Runs f(begin, end) over rows of so many floats.
  template <class F>
  void each(int64_t rows, int64_t floats_of_a_row, const F& f) const {
    parallel_for(pool, rows, 16384 / (floats_of_a_row + 1) + 1, f);
  }

 private:
  void* at(const Value& value) const { return arena + offsets[value.buffer]; }
};

using Run = std::function<Status(const Frame&)>;

}  // namespace stompp::runtime
