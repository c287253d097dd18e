// Checks the structure of a file against its closed grammar, and prepares its modules.
#include <algorithm>
#include <cstring>

#include "runtime/graph/network.h"

namespace stompp::runtime {
namespace {

bool is_identifier(const std::string& name) {
  const auto fits = [](char c) { return c == '_' || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  return !name.empty() && name.size() <= 2048 && fits(name[0]) && name.substr(0, 2) != "__" &&
         std::all_of(name.begin(), name.end(), [&](char c) { return fits(c) || (c >= '0' && c <= '9'); });
}

// A dotted name whose parts are printable ASCII without quotes, backslash and '#'.
bool is_path(const std::string& name) {
  const std::string dotted = "." + name + ".";
  return name.size() <= 1024 && dotted.find("..") == std::string::npos && dotted.find(".__") == std::string::npos &&
         std::all_of(name.begin(), name.end(),
                     [](char c) { return c >= ' ' && c <= '~' && !std::strchr("\"'\\#", c); });
}

// Brings a structure of version 1 or 2 into the form of version 3.
void upgrade(int version, Json* structure) {
  Json* modules = const_cast<Json*>(structure->find("modules"));
  Json* graph = const_cast<Json*>(structure->find("graph"));
  if (modules == nullptr || graph == nullptr) return;
  for (Json& node : graph->items) {
    Json *target = const_cast<Json*>(node.find("target")), *args = const_cast<Json*>(node.find("args"));
    if (target == nullptr || args == nullptr || !target->is_text("shape") || args->items.size() != 1) continue;
    target->text = "getattr";
    args->items.push_back(Json(std::string("shape")));
  }
  for (Json& spec : modules->items) {
    const Json *type = spec.find("type"), *rows = spec.find("threshold_rows");
    if (version > 1 || type == nullptr || rows == nullptr || spec.find("writes") != nullptr) continue;
    spec.keys.insert(spec.keys.end(), {"writes", "fused"});
    spec.items.push_back(Json(std::string(rows->integer > 0 ? "bits" : "floats")));
    spec.items.push_back(Json(false));
  }
  structure->keys.push_back("attributes");
  structure->items.emplace_back(Json::Kind::kObject, std::vector<Json>());
}

class Opening {
 public:
  Opening(const Container& container, Network* network) : container_(container), n_(*network) {}

  Outcome open() {
    const Json& s = n_.structure;
    if (s.find("model") != nullptr) return unsupported("a model of transformers, which this library does not run");
    if (!s.has_keys({"modules", "attributes", "graph"}))
      return bad_file("a structure has modules, attributes and graph");
    const Json &modules = *s.find("modules"), &attributes = *s.find("attributes"), &graph = *s.find("graph");
    if (!modules.is(Json::Kind::kObject) || !attributes.is(Json::Kind::kObject) || !graph.is(Json::Kind::kList))
      return bad_file("modules and attributes must be objects, the graph a list");
    STOMPP_TRY(check_names(modules.keys, attributes.keys));
    STOMPP_TRY(share_tensors(modules, attributes));
    for (size_t i = 0; i < modules.items.size(); ++i) STOMPP_TRY(open_module(modules.keys[i], modules.items[i]));
    for (size_t i = 0; i < graph.items.size(); ++i)
      STOMPP_TRY(open_node(graph.items[i], static_cast<int>(i), i + 1 == graph.items.size()));
    return graph.items.empty() ? bad_file("the last node must be the output") : check_changes_in_place();
  }

 private:
  Outcome check_names(const std::vector<std::string>& modules, const std::vector<std::string>& attributes) const {
    std::set<std::string> names(modules.begin(), modules.end());
    names.insert(attributes.begin(), attributes.end());
    if (names.size() != modules.size() + attributes.size()) return bad_file("a name of a module and an attribute");
    for (const std::string& name : names) {
      if (!is_path(name)) return bad_file(shown(name) + " is no name of a module or tensor");
      for (size_t dot = name.rfind('.'); dot != std::string::npos; dot = dot == 0 ? dot - 1 : name.rfind('.', dot - 1))
        if (names.count(name.substr(0, dot)) > 0) return bad_file(shown(name) + " lies in another module or tensor");
    }
    return {};
  }

  // Gives each tensor to the module or attribute that has it.
  Outcome share_tensors(const Json& modules, const Json& attributes) {
    for (const std::string& name : modules.keys) n_.modules[name];
    for (const Tensor& tensor : container_.tensors) {
      if (const Json* kind = attributes.find(tensor.name); kind != nullptr) {
        STOMPP_TRY(open_attribute(tensor, *kind));
        continue;
      }
      size_t dot = tensor.name.rfind('.');
      while (dot != std::string::npos && dot > 0 && n_.modules.count(tensor.name.substr(0, dot)) == 0)
        dot = tensor.name.rfind('.', dot - 1);
      if (dot == std::string::npos || dot == 0) return bad_file("no module has the tensor " + shown(tensor.name));
      n_.modules[tensor.name.substr(0, dot)].tensors[tensor.name.substr(dot + 1)] = &tensor;
    }
    if (n_.attributes.size() != attributes.keys.size()) return bad_file("the file lacks the tensor of an attribute");
    return {};
  }

  Outcome open_attribute(const Tensor& tensor, const Json& kind) {
    if (!kind.is_text("parameter") && !kind.is_text("buffer"))
      return bad_file("attribute " + shown(tensor.name) + " must be a parameter or buffer");
    if (tensor.type != Tensor::Type::kFloat32 || tensor.bytes == 0 || tensor.shape.size() > STOMPP_MAX_RANK)
      return unsupported("attribute " + shown(tensor.name) + " of " + tensor.type_name + ", or of many dimensions");
    Attribute& own = n_.attributes[tensor.name];
    own.shape = shape_of({});
    for (const int64_t size : tensor.shape) own.shape.sizes[own.shape.rank++] = size;
    std::vector<float> values(static_cast<size_t>(tensor.bytes / 4));
    std::memcpy(values.data(), tensor.data, static_cast<size_t>(tensor.bytes));
    own.values = values;
    if (own.shape.rank != 4) return {};
    const Shape& s = own.shape;
    const Shape strides = strides_of(s);  // channels lie side by side here
    size_t from = 0;
    for (int64_t n = 0; n < s.sizes[0]; ++n)
      for (int64_t c = 0; c < s.sizes[1]; ++c)
        for (int64_t i = 0; i < s.sizes[2] * s.sizes[3]; ++i)
          own.values[static_cast<size_t>(n * strides.sizes[0] + i * s.sizes[1] + c)] = values[from++];
    return {};
  }

  Outcome open_module(const std::string& name, const Json& spec) {
    Module& m = n_.modules[name];
    const Json *type = spec.find("type"), *arguments = spec.find("arguments");
    m.name = name;
    m.implementation = n_.implementation;
    if (!spec.is(Json::Kind::kObject) || type == nullptr || !type->is(Json::Kind::kText))
      return bad_file("module " + shown(name) + " must be an object with a type");
    m.type = type->text;
    const std::string what = "module " + shown(name) + " of type " + shown(m.type);
    const bool plain = !m.type.empty() && m.type.find_first_of(". ") == std::string::npos;
    const Operation* operation = plain ? find_operation(m.type) : nullptr;
    if (operation == nullptr || operation->settings == nullptr) return unsupported(what + " is not in this library");
    // Packed layers have their settings beside the type, others in an object of arguments.
    const bool packed = std::string_view(operation->settings).find("type:") == 0;
    if (!packed && !(spec.has_keys({"type", "arguments"}) && arguments->is(Json::Kind::kObject)))
      return bad_file(what + " must have a type and arguments");
    STOMPP_TRY(check_call(what, operation->settings, nullptr, packed ? spec : *arguments, &m.settings));
    Outcome outcome = operation->prepare == nullptr ? Outcome{} : operation->prepare(m);
    if (outcome.is_ok() && !m.tensors.empty())
      outcome = bad_file("it has a tensor " + shown(m.tensors.begin()->first) + " that it does not take");
    if (!outcome.is_ok()) outcome.text = what + ": " + outcome.text;
    return outcome;
  }

  Outcome open_node(const Json& json, int number, bool last) {
    if (!json.has_keys({"name", "op", "target", "args", "kwargs"}))
      return bad_file("a node must have name, op, target, args and kwargs");
    const Json &name = *json.find("name"), &op = *json.find("op"), &target = *json.find("target");
    const Json &args = *json.find("args"), &kwargs = *json.find("kwargs");
    if (!name.is(Json::Kind::kText) || !is_identifier(name.text))
      return bad_file("a node's name must be an identifier");
    const std::string what = "node " + shown(name.text);
    if (known_.count(name.text) > 0) return bad_file("two nodes have the name " + shown(name.text));
    if (!op.is(Json::Kind::kText) || !target.is(Json::Kind::kText) || !args.is(Json::Kind::kList) ||
        !kwargs.is(Json::Kind::kObject))
      return bad_file(what + " must have a target of text, a list of args and an object of kwargs");
    if ((op.text == "output") != last) return bad_file("the last node, and no other, must be the output");
    STOMPP_TRY(note_reads(what, args, number));
    STOMPP_TRY(note_reads(what, kwargs, number));
    if (last) return open_output(args, kwargs);
    Node node;
    node.name = name.text;
    node.last_use = number;
    if (op.text == "placeholder" || op.text == "get_attr") {
      if (!kwargs.items.empty() || !args.items.empty())
        return unsupported(what + ", an input that may be left out or a tensor with arguments");
      STOMPP_TRY(op.text == "placeholder" ? open_input(what, target.text, &node) : open_read(what, target.text, &node));
    } else {
      STOMPP_TRY(open_call(what, op.text, target.text, &node));
      STOMPP_TRY(check_call(what, node.operation->call, &args, kwargs, &node.arguments));
    }
    known_[node.name] = n_.nodes.size();
    n_.nodes.push_back(std::move(node));
    return {};
  }

  Outcome open_input(const std::string& what, const std::string& target, Node* node) {
    if (n_.inputs.size() != n_.nodes.size()) return bad_file(what + ", an input, must be before all other nodes");
    if (!is_identifier(target) || std::count(n_.inputs.begin(), n_.inputs.end(), target) > 0)
      return bad_file(what + " must have a name of its own that is an identifier");
    node->input = static_cast<int>(n_.inputs.size());
    n_.inputs.push_back(target);
    return {};
  }

  Outcome open_read(const std::string& what, const std::string& target, Node* node) const {
    node->attribute = target;
    return n_.attributes.count(target) > 0 ? Outcome{} : unsupported(what + " reads a tensor of a module");
  }

  Outcome open_call(const std::string& what, const std::string& op, const std::string& target, Node* node) {
    if (op == "call_module") {
      const auto module = n_.modules.find(target);
      if (module == n_.modules.end()) return bad_file(what + " calls " + shown(target) + ", which is no module");
      node->module = &module->second;
      node->operation = find_operation(module->second.type);
      const bool seen = std::count(n_.layers.begin(), n_.layers.end(), node->module) > 0;
      if (node->module->weight.rank > 0 && !seen) n_.layers.push_back(node->module);
      return {};
    }
    if (op != "call_function" && op != "call_method") return bad_file(what + " has the unknown op " + shown(op));
    const bool method = op == "call_method";
    // Without a prefix a function is no module of that name, and a prefix is no method.
    const bool plain = target.find_first_of(" ") == std::string::npos && !target.empty() && target[0] != '.';
    node->operation = plain ? find_operation(method ? "." + target : target) : nullptr;
    const bool is_module =
        !method && node->operation != nullptr && target[0] >= 'A' && target[0] <= 'Z' && target.substr(0, 2) != "F.";
    if (node->operation == nullptr || is_module)
      return unsupported(what + " calls " + (method ? "method " : "function ") + shown(target) +
                         ", which is not in this library");
    return {};
  }

  Outcome open_output(const Json& args, const Json& kwargs) {
    if (args.items.size() != 1 || !kwargs.items.empty()) return bad_file("the output must have one argument");
    const Json& given = args.items[0];
    const Json *list = given.has_keys({"list"}) ? given.find("list") : nullptr, *dict = given.find("dict");
    const auto add = [&](const std::string& key, const Json& value) {
      const std::string* node = node_in(value);
      if (node == nullptr) return unsupported("an output that is no result of a node");
      n_.outputs.emplace_back(key, *node);
      return Outcome{};
    };
    if (given.is(Json::Kind::kList)) list = &given;
    if (list != nullptr) {
      for (const Json& item : list->items) STOMPP_TRY(add(std::to_string(n_.outputs.size()), item));
    } else if (dict != nullptr) {
      for (const Json& pair : dict->items) {
        if (pair.items.size() != 2 || !pair.items[0].is(Json::Kind::kText)) return bad_file("a dict of no pairs");
        STOMPP_TRY(add(pair.items[0].text, pair.items[1]));
      }
    } else {
      STOMPP_TRY(add("0", given));
    }
    return n_.outputs.empty() ? unsupported("a network without outputs") : Outcome{};
  }

  // Notes that node `number` reads the nodes in a value; they must stand before it.
  Outcome note_reads(const std::string& what, const Json& value, int number) {
    if (const std::string* name = node_in(value); name != nullptr) {
      const auto found = known_.find(*name);
      if (found == known_.end()) return bad_file(what + " reads " + shown(*name) + ", which is no node before it");
      n_.nodes[found->second].last_use = number;
      return {};
    }
    for (const Json& item : value.items) STOMPP_TRY(note_reads(what, item, number));
    return {};
  }

  // What changes its argument in place must be all that reads it, and what shares its memory: here it makes a copy.
  Outcome check_changes_in_place() const {
    for (size_t i = 0; i < n_.nodes.size(); ++i) {
      const Node& node = n_.nodes[i];
      const Json* argument = node.arguments.find(node.arguments.find("a") == nullptr ? "input" : "a");
      const std::string* name = argument == nullptr ? nullptr : node_in(*argument);
      if (name == nullptr || !changes_in_place(i)) continue;
      for (const Node* at = &n_.nodes[known_.at(*name)];;) {
        if (at->last_use > static_cast<int>(i) || at->input >= 0 || !at->attribute.empty())
          return unsupported("node " + shown(node.name) + " changes in place what others read");
        const Json* before = at->operation->views ? at->arguments.find("input") : nullptr;
        if (at->operation->views && before == nullptr) before = at->arguments.find("a");
        if (before == nullptr) break;
        at = &n_.nodes[known_.at(*node_in(*before))];
      }
    }
    return {};
  }

  bool changes_in_place(size_t index) const {
    const Node& node = n_.nodes[index];
    const Json& json = n_.structure.find("graph")->items[index];
    const std::string &op = json.find("op")->text, &target = json.find("target")->text;
    const Json* flag = node.module != nullptr ? node.module->settings.find("inplace") : node.arguments.find("inplace");
    const bool named = op != "call_module" && (target.back() == '_' || target == "iadd" || target == "isub" ||
                                               target == "imul" || target == "itruediv");
    return named || (flag != nullptr && flag->boolean);
  }

  const Container& container_;
  Network& n_;
  std::map<std::string, size_t> known_;  // nodes by name
};

}  // namespace

int64_t Network::weight_bytes() const {
  int64_t bytes = 0;
  for (const auto& [name, module] : modules) bytes += module.prepared == nullptr ? 0 : module.prepared->bytes;
  for (const auto& [name, attribute] : attributes) bytes += static_cast<int64_t>(attribute.values.size()) * 4;
  return bytes;
}

Outcome open_network(const uint8_t* bytes, size_t size, const Implementation& implementation, Network* network) {
  Container container;
  STOMPP_TRY(read_container(bytes, size, &container));
  network->implementation = &implementation;
  network->file_bytes = static_cast<int64_t>(size);
  STOMPP_TRY(parse_json(container.structure, container.version < 3, &network->structure));
  if (container.version < 3) upgrade(container.version, &network->structure);
  return Opening(container, network).open();
}

}  // namespace stompp::runtime
