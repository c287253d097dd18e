// Tensors on the CPU: allocation and torch's thread pool.
#pragma once

#include "core/base/parallel.h"
#include "torch/huge_pages.h"
#include "torch/tensors.h"

namespace stompp::binding {

inline Parallel torch_pool() {
  return {[](int64_t count, int64_t grain, Parallel::Body body, void* context) {
            torch::stable::parallel_for(0, count, grain,
                                        [=](int64_t begin, int64_t end) { body(begin, end, context); });
          },
          static_cast<int>(torch::stable::get_num_threads())};
}

// The first touch of a large result in pages of 4 KB takes longer than computing it.
inline Tensor with_huge_pages(Tensor fresh) {
  advise_huge_pages(fresh.data_ptr(), fresh.numel() * static_cast<int64_t>(fresh.element_size()));
  return fresh;
}

// A CPU tensor of undefined values, contiguous without strides.
inline Tensor new_tensor(const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides, ScalarType type) {
  return with_huge_pages(empty_strided(sizes, strides, type, aoti_torch_device_type_cpu(), 0));
}

inline Tensor new_tensor(const std::vector<int64_t>& sizes, ScalarType type) {
  return new_tensor(sizes, contiguous_strides(sizes), type);
}

// The Place of epilogues.h. It checks nothing: torch calls the CPU's kernel only if every argument is there.
struct Host {
  static void check_here(const char*, const char*, const Tensor&) {}
  static Tensor empty(const std::vector<int64_t>& sizes, ScalarType type) { return new_tensor(sizes, type); }
};

// A weight argument: packed bytes and the shape they must have been packed for.
struct WeightArgument {
  Tensor data;  // keeps the bytes alive
  PackedWeight view;
};

WeightArgument weight_argument(const char* op, const Tensor& weight, const WeightShape& expected);

}  // namespace stompp::binding
