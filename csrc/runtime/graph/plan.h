// A network planned for some sizes of inputs: every size is known, every value has its place in one arena.
#pragma once

#include "runtime/graph/network.h"
#include "runtime/graph/planning.h"

namespace stompp::runtime {

struct Plan {
  struct Step {
    const Node* node;
    std::vector<Value> results;
    Run run;  // or empty, where the results are an argument's
  };

  std::vector<Shape> inputs;
  std::vector<Value> output_values;
  std::vector<Step> steps;
  std::vector<int64_t> offsets;  // of buffers in the arena
  int64_t arena_bytes = 0;
};

Outcome plan_network(const Network& network, const std::vector<Shape>& inputs, Plan* plan);

}  // namespace stompp::runtime
