// Runs of four outputs of a row: written and read as one piece of memory where that is aligned and all of them exist.
#pragma once

#include "cuda/product/epilogue.cuh"

namespace stompp::cuda {

template <class Value>
struct alignas(4 * sizeof(Value)) Run {
  Value values[4];
};

// Writes the first `count` values; in_runs: all four, at an address that is aligned.
template <class Value>
__device__ inline void store_run(Value* to, const Value (&values)[4], int count, bool in_runs) {
  if (in_runs) {
    *reinterpret_cast<Run<Value>*>(to) = {values[0], values[1], values[2], values[3]};
    return;
  }
#pragma unroll
  for (int v = 0; v < 4; ++v)
    if (v < count) to[v] = values[v];
}

// Writes floats to outputs [at, at + count) of an affine epilogue.
__device__ inline void store_floats(const Epilogue& e, int64_t at, const float (&y)[4], int count, bool in_runs) {
  if (e.out_type == FloatType::kFloat32) {
    store_run(static_cast<float*>(e.out) + at, y, count, in_runs);
    return;
  }
  uint16_t halves[4];
#pragma unroll
  for (int v = 0; v < 4; ++v) halves[v] = e.out_type == FloatType::kFloat16 ? to_half(y[v]) : to_bfloat16(y[v]);
  store_run(static_cast<uint16_t*>(e.out) + at, halves, count, in_runs);
}

// Reads the residual of outputs [at, at + count).
__device__ inline void load_residual(const Epilogue& e, int64_t at, int count, bool in_runs, float (&values)[4]) {
  if (in_runs && e.residual_type == FloatType::kFloat32) {
    const Run<float> run = *reinterpret_cast<const Run<float>*>(static_cast<const float*>(e.residual) + at);
#pragma unroll
    for (int v = 0; v < 4; ++v) values[v] = run.values[v];
  } else if (in_runs) {
    const Run<uint16_t> run = *reinterpret_cast<const Run<uint16_t>*>(static_cast<const uint16_t*>(e.residual) + at);
#pragma unroll
    for (int v = 0; v < 4; ++v)
      values[v] = e.residual_type == FloatType::kFloat16 ? from_half(run.values[v]) : from_bfloat16(run.values[v]);
  } else {
#pragma unroll
    for (int v = 0; v < 4; ++v)
      if (v < count) values[v] = load_float(e.residual, e.residual_type, at + v);
  }
}

}  // namespace stompp::cuda
