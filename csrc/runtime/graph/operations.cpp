#include "runtime/graph/operations.h"

#include <cstring>

namespace stompp::runtime {

Outcome Module::find(const std::string& key, const std::vector<int64_t>& shape, Tensor::Type type,
                     const Tensor** tensor) const {
  const auto found = tensors.find(key);
  if (found == tensors.end()) return bad_file("it needs a tensor " + shown(key));
  *tensor = found->second;
  if ((*tensor)->type != type)
    return unsupported("its tensor " + shown(key) + " is " + (*tensor)->type_name +
                       ", which this library does not read");
  if ((*tensor)->shape != shape)
    return bad_file("its tensor " + shown(key) + " has another shape than its settings ask for");
  return {};
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
