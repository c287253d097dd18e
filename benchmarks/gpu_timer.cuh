// Times of kernels by CUDA events, for the programs of this folder.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/platform.cuh"

namespace stompp::cuda {

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

// The median milliseconds of ten runs after one that warms up; `run` queues work on the default stream.
template <class Run>
float median_ms(const Run& run) {
  cudaEvent_t start, end;
  check(cudaEventCreate(&start));
  check(cudaEventCreate(&end));
  std::vector<float> times;
  for (int i = 0; i < 11; ++i) {
    check(cudaEventRecord(start));
    const Status status = run();
    if (!status.is_ok()) {
      std::fprintf(stderr, "%s\n", status.message());
      std::exit(1);
    }
    check(cudaEventRecord(end));
    check(cudaEventSynchronize(end));
    float ms = 0;
    check(cudaEventElapsedTime(&ms, start, end));
    if (i > 0) times.push_back(ms);
  }
  check(cudaEventDestroy(start));
  check(cudaEventDestroy(end));
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

}  // namespace stompp::cuda
