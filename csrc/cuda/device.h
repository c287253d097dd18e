// What a launch must know of the GPU that it runs on.
#pragma once

namespace stompp::cuda {

struct Device {
  int capability;  // 10 * major + minor: 80, 90, 120 ..
  int multiprocessors;
};

}  // namespace stompp::cuda
