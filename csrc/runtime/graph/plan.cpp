#include "runtime/graph/plan.h"

#include <algorithm>
#include <numeric>

namespace stompp::runtime {
namespace {

constexpr int64_t kLine = 64;

}  // namespace

const Arguments& Planning::own(std::string_view name) const {
  return module != nullptr && arguments->find(name) == nullptr ? module->settings : *arguments;
}

const Json* Planning::find(std::string_view name) const { return own(name).find(name); }

const Json* Planning::find_any(std::string_view name) const {
  for (const auto& [own, value] : arguments->all())
    if (own == name) return value;
  return nullptr;
}

Outcome Planning::dimension(std::string_view name, int64_t otherwise, int rank, int* dim) const {
  int64_t value = integer(name, otherwise);
  value += value < 0 ? rank : 0;
  if (value < 0 || value >= rank) return bad_argument("'" + std::string(name) + "' is no dimension of the value");
  *dim = static_cast<int>(value);
  return {};
}

const std::vector<Value>* Planning::results_of(const std::string& node) const { return &results_.at(node); }

Outcome Planning::value_in(const Json& json, Value* value) const {
  const std::vector<Value>& results = *results_of(*node_in(json));
  if (results.size() != 1) return unsupported("two results where one is read");
  *value = results.front();
  return {};
}

Outcome Planning::floats(std::string_view name, Value* value) const {
  const Json* json = find(name);
  if (json == nullptr || node_in(*json) == nullptr) return unsupported("no value for '" + std::string(name) + "'");
  STOMPP_TRY(value_in(*json, value));
  if (value->kind != Value::Kind::kFloats || value->shape.rank == 0)
    return bad_argument("'" + std::string(name) + "' must be floats of at least one dimension");
  return {};
}

Outcome Planning::images(std::string_view name, Value* value) const {
  STOMPP_TRY(floats(name, value));
  return value->shape.rank == 4 ? Outcome{} : bad_argument("'" + std::string(name) + "' must be images [N, C, H, W]");
}

Outcome Planning::bits(std::string_view name, Value* value) const {
  const Json* json = find(name);
  if (json == nullptr) return unsupported("no value for '" + std::string(name) + "'");
  STOMPP_TRY(value_in(*json, value));
  return value->kind == Value::Kind::kBits ? Outcome{} : bad_argument("'" + std::string(name) + "' must be bits");
}

Outcome Planning::make(Value::Kind kind, const Shape& shape, Value* value) {
  int64_t count = 1;
  for (int i = 0; i < shape.rank; ++i) {
    if (shape.sizes[i] < 1 || shape.sizes[i] > kMostBytes / 4 / count) return bad_argument("a value that is too large");
    count *= shape.sizes[i];
  }
  value->kind = kind;
  value->shape = shape;
  value->constant = nullptr;
  value->buffer = static_cast<int>(buffers_.size());
  buffers_.push_back({value->bytes(), node_, node_});
  give(*value);
  return {};
}

Outcome Planning::overwriting(const Value& argument, const Shape& shape, Value* value) {
  const bool last = argument.buffer >= 0 && buffers_[static_cast<size_t>(argument.buffer)].last <= node_;
  if (!last || product(shape) != product(argument.shape)) return make(Value::Kind::kFloats, shape, value);
  *value = argument;
  value->shape = shape;
  give(*value);
  return {};
}

class Planner {
 public:
  Planner(const Network& network, Plan* plan) : network_(network), plan_(*plan) {}

  Outcome plan() {
    plan_.steps.reserve(network_.nodes.size());
    for (const Node& node : network_.nodes) {
      Plan::Step& step = plan_.steps.emplace_back();
      step.node = &node;
      p_.given_ = &step.results;
      p_.run_ = &step.run;
      Outcome outcome = plan_node(node);
      if (!outcome.is_ok()) {
        const std::string module = node.module == nullptr ? "" : " of module " + shown(node.module->name);
        outcome.text = "node " + shown(node.name) + module + ": " + outcome.text;
        return outcome;
      }
      for (const Value& value : step.results)
        if (value.buffer >= 0) {
          int& last = p_.buffers_[static_cast<size_t>(value.buffer)].last;
          last = std::max(last, node.last_use);
        }
      p_.results_[node.name] = step.results;
      ++p_.node_;
    }
    for (const auto& [key, node] : network_.outputs) {
      const std::vector<Value>& results = *p_.results_of(node);
      if (results.size() != 1 || results[0].kind != Value::Kind::kFloats)
        return unsupported("output " + shown(key) + " that is no floats");
      plan_.output_values.push_back(results[0]);
    }
    place_buffers();
    return {};
  }

 private:
  Outcome plan_node(const Node& node) {
    Value value;
    if (node.input >= 0) {
      const Shape& shape = plan_.inputs[static_cast<size_t>(node.input)];
      if (shape.rank < 1 || shape.rank > STOMPP_MAX_RANK) return bad_argument("an input of no or too many dimensions");
      STOMPP_TRY(p_.make(Value::Kind::kFloats, shape, &value));
      return {};
    }
    if (!node.attribute.empty()) {
      const Attribute& attribute = network_.attributes.at(node.attribute);
      value.kind = Value::Kind::kFloats;
      value.shape = attribute.shape;
      value.constant = attribute.values.data();
      p_.give(value);
      return {};
    }
    p_.arguments = &node.arguments;
    p_.module = node.module;
    return node.operation->plan(p_);
  }

  // Gives large buffers their places first, each the lowest where no other is while it lives.
  void place_buffers() {
    const std::vector<Planning::Buffer>& buffers = p_.buffers_;
    std::vector<size_t> order(buffers.size()), placed;
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return buffers[a].bytes > buffers[b].bytes; });
    plan_.offsets.assign(buffers.size(), 0);
    for (const size_t i : order) {
      const auto lower = [&](size_t a, size_t b) { return plan_.offsets[a] < plan_.offsets[b]; };
      std::sort(placed.begin(), placed.end(), lower);
      int64_t offset = 0;
      for (const size_t other : placed) {
        const bool together = buffers[other].first <= buffers[i].last && buffers[i].first <= buffers[other].last;
        if (!together) continue;
        if (plan_.offsets[other] >= offset + buffers[i].bytes) break;
        offset = std::max(offset, plan_.offsets[other] + round_up(buffers[other].bytes, kLine));
      }
      plan_.offsets[i] = offset;
      plan_.arena_bytes = std::max(plan_.arena_bytes, offset + round_up(buffers[i].bytes, kLine));
      placed.push_back(i);
    }
  }

  const Network& network_;
  Plan& plan_;
  Planning p_;
};

Outcome plan_network(const Network& network, const std::vector<Shape>& inputs, Plan* plan) {
  plan->inputs = inputs;
  return Planner(network, plan).plan();
}

}  // namespace stompp::runtime
