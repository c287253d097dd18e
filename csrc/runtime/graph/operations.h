// The closed list of what a network may do.
#pragma once

#include <map>
#include <memory>

#include "core/isa/implementation.h"
#include "runtime/file/container.h"
#include "runtime/graph/signature.h"
#include "runtime/graph/value.h"

namespace stompp::runtime {

class Planning;

// What a module keeps of its tensors, in the order that kernels read.
struct Prepared {
  virtual ~Prepared() = default;
  int64_t bytes = 0;
};

// A module of the file. Operations take the tensors that they know; one that is left is an error.
class Module {
 public:
  std::string name, type;
  Arguments settings;
  std::map<std::string, const Tensor*> tensors;  // by their names in the module
  const Implementation* implementation = nullptr;
  std::shared_ptr<const Prepared> prepared;
  stompp_arithmetic arithmetic = STOMPP_FLOAT;
  Shape weight = {};  // rank 0: no layer

  bool has(const std::string& key) const { return tensors.count(key) > 0; }
  // Copies a tensor of this shape; an absent one is an error.
  Outcome take(const std::string& key, std::initializer_list<int64_t> shape, std::vector<float>* values);
  Outcome take(const std::string& key, std::initializer_list<int64_t> shape, std::vector<int32_t>* values);

 private:
  template <class T>
  Outcome take_any(const std::string& key, std::initializer_list<int64_t> shape, Tensor::Type type, std::vector<T>*);
};

struct Operation {
  // Names of modules "ReLU", functions "F.relu" and methods ".relu", between spaces.
  const char* names;
  const char* settings;  // signature of a module's arguments
  const char* call;      // signature of a call
  Outcome (*plan)(Planning& planning);
  Outcome (*prepare)(Module& module) = nullptr;
  // Whether results may lie where an argument does, so that a change in place would change both.
  bool views = false;
};

// Returns the operation of a name, or null.
const Operation* find_operation(const std::string& name);

// The lists of each file of steps.
struct OperationList {
  const Operation* begin;
  size_t count;
};
OperationList packed_operations();
OperationList float_layer_operations();
OperationList pointwise_operations();
OperationList pooling_operations();
OperationList shape_operations();

}  // namespace stompp::runtime
