// A network as a file holds it, checked, with weights in the order that kernels read.
#pragma once

#include <set>

#include "runtime/graph/operations.h"

namespace stompp::runtime {

struct Node {
  std::string name;
  const Operation* operation = nullptr;  // null for inputs, attributes and the output
  const Module* module = nullptr;        // that it calls, or null
  Arguments arguments;
  int input = -1;  // its number
  std::string attribute;
  int last_use = 0;  // the number of the last node that reads it
};

struct Attribute {
  Shape shape;
  std::vector<float> values;
};

struct Network {
  const Implementation* implementation = nullptr;
  int64_t file_bytes = 0;
  Json structure;
  std::map<std::string, Module> modules;
  std::map<std::string, Attribute> attributes;
  std::vector<Node> nodes;  // in order of execution, without the output
  std::vector<std::string> inputs;
  std::vector<std::pair<std::string, std::string>> outputs;  // key and node
  std::vector<const Module*> layers;                         // in order of execution

  Network() = default;
  Network(const Network&) = delete;
  int64_t weight_bytes() const;
};

Outcome open_network(const uint8_t* bytes, size_t size, const Implementation& implementation, Network* network);

}  // namespace stompp::runtime
