// What a launch must know of the GPU that it runs on.
#pragma once

namespace stompp::cuda {

struct Device {
  int capability;  // 10 * major + minor of the code that runs there: older than the GPU where that compiles PTX
  int multiprocessors;
};

}  // namespace stompp::cuda
