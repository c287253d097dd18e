// The functions of stompp.h: what is thrown inside does not leave them.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <list>
#include <memory>
#include <new>

#include "core/base/aligned.h"
#include "core/isa/dispatch.h"
#include "runtime/graph/plan.h"
#include "runtime/steps/nest.h"
#include "runtime/workers/team.h"

using namespace stompp;
using namespace stompp::runtime;

namespace {

// What one call under way has of its own.
struct Session {
  Plan plan;
  AlignedFloats arena;
  Team team;
};

constexpr size_t kMostIdle = 16;  // sessions that wait for the next call

}  // namespace

struct stompp_network {
  Network network;
  mutable Mutex mutex;
  mutable std::list<std::unique_ptr<Session>> idle;  // the last used first
};

namespace {

// Runs f, and says in the error what went wrong.
template <class F>
stompp_status guarded(stompp_error* error, const F& f) {
  Outcome outcome;
#if defined(__cpp_exceptions)
  try {
    outcome = f();
  } catch (const std::exception& thrown) {  // the standard library's, which has no memory or no room
    if (error != nullptr) std::snprintf(error->text, sizeof(error->text), "out of memory: %s", thrown.what());
    return STOMPP_NO_MEMORY;
  }
#else
  outcome = f();
#endif
  if (error != nullptr) std::snprintf(error->text, sizeof(error->text), "%s", outcome.text.c_str());
  return outcome.status;
}

const Implementation* find_implementation(const char* name) {
  if (name == nullptr || *name == '\0') return active_implementation();
  size_t count = 0;
  const Implementation* const* list = implementations(&count);
  for (size_t i = 0; i < count; ++i)
    if (std::strcmp(list[i]->name, name) == 0 && is_supported(*list[i])) return list[i];
  return nullptr;
}

Outcome open(const uint8_t* bytes, size_t size, const stompp_open_options* options, stompp_network** network) {
  const char* name = options == nullptr ? nullptr : options->implementation;
  const Implementation* implementation = find_implementation(name);
  if (implementation == nullptr)
    return bad_argument("implementation " + shown(name == nullptr ? "of STOMPP_CPU" : name) +
                        " is unknown, or this processor does not support it");
  auto made = std::make_unique<stompp_network>();
  const UseImplementation use(*implementation);
  STOMPP_TRY(open_network(bytes, size, *implementation, &made->network));
  *network = made.release();
  return {};
}

Outcome check_count(const char* name, const void* given, int32_t count, size_t wanted) {
  if (given != nullptr && count >= 0 && static_cast<size_t>(count) == wanted) return {};
  return bad_argument(std::string(name) + " must be " + std::to_string(wanted) + ", got " + std::to_string(count));
}

// Takes an idle session of these sizes, or makes one.
Outcome take_session(const stompp_network& n, const std::vector<Shape>& shapes, std::unique_ptr<Session>* session) {
  {
    const Lock lock(n.mutex);
    const auto fits = [&](const std::unique_ptr<Session>& s) { return s->plan.inputs == shapes; };
    const auto found = std::find_if(n.idle.begin(), n.idle.end(), fits);
    if (found != n.idle.end()) {
      *session = std::move(*found);
      n.idle.erase(found);
      return {};
    }
  }
  auto made = std::make_unique<Session>();
  STOMPP_TRY(plan_network(n.network, shapes, &made->plan));
  made->arena = aligned_floats(made->plan.arena_bytes / 4 + 1);
  if (made->arena == nullptr) return {STOMPP_NO_MEMORY, "no memory for an arena"};
  *session = std::move(made);
  return {};
}

void give_back(const stompp_network& n, std::unique_ptr<Session> session) {
  std::unique_ptr<Session> oldest;  // ends outside of the lock
  const Lock lock(n.mutex);
  n.idle.push_front(std::move(session));
  if (n.idle.size() <= kMostIdle) return;
  oldest = std::move(n.idle.back());
  n.idle.pop_back();
}

void read_input(const Frame& frame, const float* from, const Value& value) {
  const Shape strides = row_major_strides(value.shape);
  copy_nest(frame, Nest(value.shape, strides, strides), from, frame.floats(value));
}

void write_output(const Frame& frame, const Value& value, float* to) {
  const Shape strides = strides_of(value.shape);
  copy_nest(frame, Nest(value.shape, strides, strides, true), frame.floats(value), to);
}

void show(const Frame& frame, const Plan::Step& step, const stompp_run_options& options) {
  for (const Value& value : step.results) {
    const bool bits = value.kind == Value::Kind::kBits;
    if (!bits && value.kind != Value::Kind::kFloats) continue;
    stompp_value shown_value = {};
    shown_value.name = step.node->name.c_str();
    shown_value.layer = step.node->module == nullptr ? "" : step.node->module->name.c_str();
    shown_value.is_bits = bits;
    shown_value.data = bits ? static_cast<const void*>(frame.words(value)) : frame.floats(value);
    shown_value.shape = value.shape;
    const Shape strides = strides_of(value.shape);
    if (!bits) std::copy(strides.sizes, strides.sizes + strides.rank, shown_value.strides);
    options.observe(options.context, &shown_value);
  }
}

Outcome run_session(Session& session, const Parallel& pool, const stompp_input* inputs, stompp_output* outputs,
                    const stompp_run_options& options) {
  const Plan& plan = session.plan;
  const Frame frame = {reinterpret_cast<uint8_t*>(session.arena.get()), plan.offsets.data(), pool};
  for (const Plan::Step& step : plan.steps) {
    if (step.node->input >= 0) read_input(frame, inputs[step.node->input].data, step.results[0]);
    if (step.run) {
      const Status status = step.run(frame);
      if (!status.is_ok()) return {STOMPP_NO_MEMORY, "node " + shown(step.node->name) + ": " + status.message()};
    }
    if (options.observe != nullptr) show(frame, step, options);
  }
  for (size_t i = 0; i < plan.output_values.size(); ++i) {
    write_output(frame, plan.output_values[i], outputs[i].data);
    outputs[i].shape = plan.output_values[i].shape;
  }
  return {};
}

Outcome run(const stompp_network& n, const stompp_input* inputs, int32_t input_count, stompp_output* outputs,
            int32_t output_count, const stompp_run_options& options) {
  STOMPP_TRY(check_count("input_count", inputs, input_count, n.network.inputs.size()));
  STOMPP_TRY(check_count("output_count", outputs, output_count, n.network.outputs.size()));
  std::vector<Shape> shapes;
  for (int32_t i = 0; i < input_count; ++i) {
    if (inputs[i].data == nullptr) return bad_argument("inputs[" + std::to_string(i) + "].data must not be null");
    shapes.push_back(inputs[i].shape);
  }
  std::unique_ptr<Session> session;
  STOMPP_TRY(take_session(n, shapes, &session));
  Outcome outcome;
  for (int32_t i = 0; i < output_count && outcome.is_ok(); ++i) {
    const int64_t count = product(session->plan.output_values[static_cast<size_t>(i)].shape);
    if (outputs[i].data == nullptr || outputs[i].capacity < count)
      outcome = bad_argument("outputs[" + std::to_string(i) + "] must have room for " + std::to_string(count) +
                             " numbers, got " + std::to_string(outputs[i].data == nullptr ? 0 : outputs[i].capacity));
  }
  if (outcome.is_ok()) {
    const UseImplementation use(*n.network.implementation);
    const Team::Use team(session->team, options.threads);
    outcome = run_session(*session, team.pool(), inputs, outputs, options);
  }
  give_back(n, std::move(session));
  return outcome;
}

}  // namespace

stompp_status stompp_open(const char* path, const stompp_open_options* options, stompp_network** network,
                          stompp_error* error) {
  return guarded(error, [&] {
    if (path == nullptr || network == nullptr) return bad_argument("path and network must not be null");
    std::vector<uint8_t> bytes;
    STOMPP_TRY(read_file(path, &bytes));
    Outcome outcome = open(bytes.data(), bytes.size(), options, network);
    if (outcome.status == STOMPP_BAD_FILE || outcome.status == STOMPP_UNSUPPORTED)
      outcome.text = shown_path(path) + ": " + outcome.text;
    return outcome;
  });
}

stompp_status stompp_open_memory(const void* bytes, size_t size, const stompp_open_options* options,
                                 stompp_network** network, stompp_error* error) {
  return guarded(error, [&] {
    if (bytes == nullptr || network == nullptr) return bad_argument("bytes and network must not be null");
    return open(static_cast<const uint8_t*>(bytes), size, options, network);
  });
}

void stompp_close(stompp_network* network) { delete network; }

stompp_status stompp_describe(const stompp_network* network, stompp_description* description, stompp_error* error) {
  return guarded(error, [&] {
    if (network == nullptr || description == nullptr) return bad_argument("network and description must not be null");
    const Network& n = network->network;
    *description = {static_cast<int32_t>(n.inputs.size()),
                    static_cast<int32_t>(n.outputs.size()),
                    static_cast<int32_t>(n.layers.size()),
                    n.implementation->name,
                    n.file_bytes,
                    n.weight_bytes()};
    return Outcome{};
  });
}

const char* stompp_input_name(const stompp_network* network, int32_t index) {
  if (network == nullptr || index < 0 || static_cast<size_t>(index) >= network->network.inputs.size()) return nullptr;
  return network->network.inputs[static_cast<size_t>(index)].c_str();
}

const char* stompp_output_name(const stompp_network* network, int32_t index) {
  if (network == nullptr || index < 0 || static_cast<size_t>(index) >= network->network.outputs.size()) return nullptr;
  return network->network.outputs[static_cast<size_t>(index)].first.c_str();
}

stompp_status stompp_describe_layer(const stompp_network* network, int32_t index, stompp_layer* layer,
                                    stompp_error* error) {
  return guarded(error, [&] {
    if (network == nullptr || layer == nullptr) return bad_argument("network and layer must not be null");
    const auto& layers = network->network.layers;
    if (index < 0 || static_cast<size_t>(index) >= layers.size())
      return bad_argument("index must be below " + std::to_string(layers.size()) + ", got " + std::to_string(index));
    const Module& m = *layers[static_cast<size_t>(index)];
    *layer = {m.name.c_str(), m.type.c_str(), m.arithmetic, m.weight, m.prepared->bytes};
    return Outcome{};
  });
}

stompp_status stompp_plan(const stompp_network* network, const stompp_shape* inputs, int32_t input_count,
                          stompp_shape* outputs, int64_t* arena_bytes, stompp_error* error) {
  return guarded(error, [&] {
    if (network == nullptr) return bad_argument("network must not be null");
    Plan plan;
    STOMPP_TRY(check_count("input_count", inputs, input_count, network->network.inputs.size()));
    STOMPP_TRY(plan_network(network->network, {inputs, inputs + input_count}, &plan));
    for (size_t i = 0; outputs != nullptr && i < plan.output_values.size(); ++i)
      outputs[i] = plan.output_values[i].shape;
    if (arena_bytes != nullptr) *arena_bytes = plan.arena_bytes;
    return Outcome{};
  });
}

stompp_status stompp_run(const stompp_network* network, const stompp_input* inputs, int32_t input_count,
                         stompp_output* outputs, int32_t output_count, const stompp_run_options* options,
                         stompp_error* error) {
  return guarded(error, [&] {
    if (network == nullptr) return bad_argument("network must not be null");
    stompp_run_options given = options == nullptr ? stompp_run_options{} : *options;
    if (given.threads < 0 || given.threads > 1024)
      return bad_argument("threads must be between 0 and 1024, got " + std::to_string(given.threads));
    given.threads = std::max(given.threads, 1);
    return run(*network, inputs, input_count, outputs, output_count, given);
  });
}

const char* stompp_implementation(int32_t index) {
  size_t count = 0;
  const Implementation* const* list = implementations(&count);
  for (size_t i = 0; i < count && index >= 0; ++i)
    if (is_supported(*list[i]) && index-- == 0) return list[i]->name;
  return nullptr;
}

const char* stompp_version(void) { return "1.0"; }
