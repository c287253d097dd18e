// What an operation's arguments may be: "input:tensor dim=dim|none *shape:sizes", as in the Python package's lists.
//
// ":" is required and "=" optional, "*" takes all positional arguments that are left, "|" joins kinds.
#pragma once

#include <list>
#include <string>
#include <vector>

#include "runtime/file/json.h"

namespace stompp::runtime {

// Arguments by name. The values belong to the structure, but for lists of positional ones.
class Arguments {
 public:
  // Returns null where it was left out, or is null.
  const Json* find(std::string_view name) const;

  int64_t integer(std::string_view name, int64_t otherwise) const;
  double number(std::string_view name, double otherwise) const;
  bool flag(std::string_view name, bool otherwise) const;
  // The numbers of height and width, of one that stands for both, or of a list of two.
  Outcome pair(std::string_view name, int64_t otherwise, int64_t* height, int64_t* width) const;
  // The integers of a list, or one.
  std::vector<int64_t> integers(std::string_view name) const;

  void add(const std::string& name, const Json* value) { values_.emplace_back(name, value); }
  void add(const std::string& name, Json list) { add(name, &lists_.emplace_back(std::move(list))); }
  const std::vector<std::pair<std::string, const Json*>>& all() const { return values_; }

 private:
  std::vector<std::pair<std::string, const Json*>> values_;
  std::list<Json> lists_;
};

// Returns the name of the node that a value is, or null.
const std::string* node_in(const Json& value);

// Checks positional arguments, which may be null for none, and named ones, and adds them to `arguments`.
Outcome check_call(const std::string& what, const char* signature, const Json* args, const Json& kwargs,
                   Arguments* arguments);

}  // namespace stompp::runtime
