// The closed list of what a network may do.
#pragma once

#include <cstring>
#include <list>
#include <map>
#include <memory>

#include "core/isa/implementation.h"
#include "runtime/file/container.h"
#include "runtime/graph/signature.h"
#include "runtime/graph/value.h"

namespace stompp::runtime {

class Planning;

// What a module keeps of its tensors, in the order that kernels read. Its other pointers lead into `floats` and `ints`.
struct Prepared {
  virtual ~Prepared() = default;

  int64_t bytes = 0;
  std::list<std::vector<float>> floats;
  std::list<std::vector<int32_t>> ints;

  const float* keep(std::vector<float> values) {
    bytes += static_cast<int64_t>(values.size()) * 4;
    return floats.emplace_back(std::move(values)).data();
  }
  const int32_t* keep(std::vector<int32_t> values) {
    bytes += static_cast<int64_t>(values.size()) * 4;
    return ints.emplace_back(std::move(values)).data();
  }
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

  bool is_linear() const { return type.find("Linear") != std::string::npos; }
  bool has(const std::string& key) const { return tensors.count(key) > 0; }

  // Copies a tensor of float32 or int32; one that is absent or has another shape is an error.
  template <class T>
  Outcome take(const std::string& key, const std::vector<int64_t>& shape, std::vector<T>* values) {
    const Tensor* tensor = nullptr;
    STOMPP_TRY(find(key, shape, std::is_integral_v<T> ? Tensor::Type::kInt32 : Tensor::Type::kFloat32, &tensor));
    values->resize(static_cast<size_t>(tensor->bytes) / sizeof(T));
    std::memcpy(values->data(), tensor->data, static_cast<size_t>(tensor->bytes));
    tensors.erase(key);
    return {};
  }
  // The same, into what the module keeps.
  template <class T>
  Outcome keep(const std::string& key, const std::vector<int64_t>& shape, Prepared* prepared, const T** values) {
    std::vector<T> taken;
    STOMPP_TRY(take(key, shape, &taken));
    *values = prepared->keep(std::move(taken));
    return {};
  }

  // Checks a tensor that nothing here reads.
  Outcome drop(const std::string& key, const std::vector<int64_t>& shape, Tensor::Type type) {
    const Tensor* tensor = nullptr;
    STOMPP_TRY(find(key, shape, type, &tensor));
    tensors.erase(key);
    return {};
  }

 private:
  Outcome find(const std::string& key, const std::vector<int64_t>& shape, Tensor::Type type,
               const Tensor** tensor) const;
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
