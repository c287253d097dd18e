// Loops over the values of a result, in the order in which they lie, and over one or two arguments in step with it.
#pragma once

#include "runtime/graph/value.h"

namespace stompp::runtime {

// Neighbours in memory first: the innermost dimension is sizes[0]. An argument that repeats along one has stride 0.
struct Nest {
  int rank = 0;
  int64_t sizes[STOMPP_MAX_RANK], a[STOMPP_MAX_RANK], b[STOMPP_MAX_RANK];

  // `strides_a` and `strides_b` are for the dimensions of `shape`, in PyTorch's order. The result is row-major or lies
  // as values do.
  Nest(const Shape& shape, const Shape& strides_a, const Shape& strides_b, bool row_major = false) {
    for (int i = 0; i < shape.rank; ++i) {
      const int dim = nearest(shape, i, shape.rank == 4 && !row_major);
      const int64_t size = shape.sizes[dim], step_a = strides_a.sizes[dim], step_b = strides_b.sizes[dim];
      if (size == 1) continue;
      const int64_t inner = rank == 0 ? 0 : sizes[rank - 1];
      if (rank > 0 && step_a == a[rank - 1] * inner && step_b == b[rank - 1] * inner) {  // one loop for both
        sizes[rank - 1] *= size;
        continue;
      }
      sizes[rank] = size;
      a[rank] = step_a;
      b[rank++] = step_b;
    }
    if (rank == 0) sizes[0] = rank = 1, a[0] = b[0] = 0;
  }

  int64_t rows() const {
    int64_t count = 1;
    for (int i = 1; i < rank; ++i) count *= sizes[i];
    return count;
  }
};

// Writes out = f(a, b) for all values.
template <class F>
void run_nest(const Frame& frame, const Nest& nest, const float* a, const float* b, float* out, const F& f) {
  const int64_t inner = nest.sizes[0], step_a = nest.a[0], step_b = nest.b[0];
  const auto row = [=, &f](const float* x, const float* y, float* to, int64_t count) {
    if (step_a == 1 && step_b == 1)
      for (int64_t i = 0; i < count; ++i) to[i] = f(x[i], y[i]);
    else if (step_a == 1 && step_b == 0)
      for (int64_t i = 0; i < count; ++i) to[i] = f(x[i], y[0]);
    else
      for (int64_t i = 0; i < count; ++i) to[i] = f(x[i * step_a], y[i * step_b]);
  };
  if (nest.rank == 1) {
    frame.each(inner, 1, [&](int64_t begin, int64_t end) {
      row(a + begin * step_a, b + begin * step_b, out + begin, end - begin);
    });
    return;
  }
  frame.each(nest.rows(), inner, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float *x = a, *y = b;
      for (int64_t i = 1, left = r; i < nest.rank; left /= nest.sizes[i++]) {
        x += left % nest.sizes[i] * nest.a[i];
        y += left % nest.sizes[i] * nest.b[i];
      }
      row(x, y, out + r * inner, inner);
    }
  });
}

inline void copy_nest(const Frame& frame, const Nest& nest, const float* from, float* to) {
  run_nest(frame, nest, from, from, to, [](float value, float) { return value; });
}

}  // namespace stompp::runtime
