#include "runtime/graph/operations.h"

#include <algorithm>
#include <cstring>

namespace stompp::runtime {

template <class T>
Outcome Module::take_any(const std::string& key, std::initializer_list<int64_t> shape, Tensor::Type type,
                         std::vector<T>* values) {
  const auto found = tensors.find(key);
  if (found == tensors.end()) return bad_file("it needs a tensor " + shown(key));
  const Tensor& tensor = *found->second;
  if (tensor.type != type)
    return unsupported("its tensor " + shown(key) + " is " + tensor.type_name + ", which this library does not read");
  if (!std::equal(shape.begin(), shape.end(), tensor.shape.begin(), tensor.shape.end()))
    return bad_file("its tensor " + shown(key) + " has another shape than its settings ask for");
  values->resize(static_cast<size_t>(tensor.bytes) / sizeof(T));
  std::memcpy(values->data(), tensor.data, static_cast<size_t>(tensor.bytes));
  tensors.erase(found);
  return {};
}

Outcome Module::take(const std::string& key, std::initializer_list<int64_t> shape, std::vector<float>* values) {
  return take_any(key, shape, Tensor::Type::kFloat32, values);
}

Outcome Module::take(const std::string& key, std::initializer_list<int64_t> shape, std::vector<int32_t>* values) {
  return take_any(key, shape, Tensor::Type::kInt32, values);
}

const Operation* find_operation(const std::string& name) {
  const std::string word = " " + name + " ";
  for (const OperationList& list : {packed_operations(), float_layer_operations(), pointwise_operations(),
                                    pooling_operations(), shape_operations()})
    for (size_t i = 0; i < list.count; ++i)
      if (std::strstr(list.begin[i].names, word.c_str()) != nullptr) return &list.begin[i];
  return nullptr;
}

}  // namespace stompp::runtime
