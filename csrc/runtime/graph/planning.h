// What an operation sees while a node of the graph is planned: sizes are known, values are not.
#pragma once

#include "runtime/graph/operations.h"

namespace stompp::runtime {

class Planning {
 public:
  const Arguments* arguments = nullptr;  // of the call
  const Module* module = nullptr;        // or null

  // Arguments of the call and settings of the module.
  const Json* find(std::string_view name) const;
  int64_t integer(std::string_view name, int64_t otherwise) const { return own(name).integer(name, otherwise); }
  double number(std::string_view name, double otherwise) const { return own(name).number(name, otherwise); }
  bool flag(std::string_view name, bool otherwise) const { return own(name).flag(name, otherwise); }
  const Json* find_any(std::string_view name) const;  // null for one that was left out only
  const Arguments& own(std::string_view name) const;  // the call's, or the module's
  // A dimension of a value of some rank, from either end.
  Outcome dimension(std::string_view name, int64_t otherwise, int rank, int* dim) const;

  // What an argument's node has given; other kinds than those asked for are an error.
  Outcome floats(std::string_view name, Value* value) const;
  Outcome images(std::string_view name, Value* value) const;  // floats [N, C, H, W]
  Outcome bits(std::string_view name, Value* value) const;
  Outcome value_in(const Json& json, Value* value) const;  // the one result of the node that a value names
  const std::vector<Value>* results_of(const std::string& node) const;

  template <class Own>
  const Own& prepared() const {
    return static_cast<const Own&>(*module->prepared);
  }

  // Adds a result with a place in the arena; overwriting() takes that of an argument that nothing else reads.
  Outcome make(Value::Kind kind, const Shape& shape, Value* value);
  Outcome overwriting(const Value& argument, const Shape& shape, Value* value);
  void give(const Value& value) { given_->push_back(value); }
  Shape& given_shape() { return given_->back().shape; }  // of the last result
  void run(Run run) { *run_ = std::move(run); }

 private:
  friend class Planner;
  struct Buffer {
    int64_t bytes;
    int first, last;  // nodes that write it first and read it last
  };

  std::map<std::string, std::vector<Value>> results_;
  std::vector<Buffer> buffers_;
  int node_ = 0;
  std::vector<Value>* given_ = nullptr;
  Run* run_ = nullptr;
};

}  // namespace stompp::runtime
