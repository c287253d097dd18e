#include "runtime/graph/signature.h"

#include <algorithm>

namespace stompp::runtime {
namespace {

constexpr int64_t kBillion = int64_t{1} << 31;

enum class Form { kNode, kNull, kBool, kInteger, kNumber, kSize, kText, kAny };

// A value of a form, or a list of them. Integers and numbers lie in [low, high], texts are among the listed.
struct Kind {
  const char* name;
  Form form;
  double low, high;
  bool alone;                // one value without a list
  size_t at_least, at_most;  // in a list; no list where at_most is 0
  const char* texts = "";    // each between spaces; any where it is empty
};

constexpr Kind kKinds[] = {
    {"tensor", Form::kNode, 0, 0, true, 0, 0},
    {"tensors", Form::kNode, 0, 0, false, 1, 4096},
    {"none", Form::kNull, 0, 0, true, 0, 0},
    {"bool", Form::kBool, 0, 0, true, 0, 0},
    {"number", Form::kNumber, -double(kBillion), double(kBillion), true, 0, 0},
    {"rate", Form::kNumber, 0, 1, true, 0, 0},
    {"dim", Form::kInteger, -16, 16, true, 0, 0},
    {"dims", Form::kInteger, -16, 16, true, 0, 16},
    {"size", Form::kInteger, 1, double(kBillion), true, 0, 0},
    {"row", Form::kInteger, 1, double(kBillion), false, 2, 2},
    {"kernels", Form::kInteger, 1, double(kBillion), false, 4, 4},
    {"steps", Form::kInteger, 1, 1024, false, 2, 2},
    {"pads", Form::kInteger, 0, 256, false, 2, 2},
    {"rows", Form::kInteger, 0, 2, true, 0, 0},
    {"sign", Form::kInteger, -1, 1, true, 0, 0},
    {"kernel", Form::kInteger, 1, 1024, true, 1, 3},
    {"padding", Form::kInteger, 0, 256, true, 1, 3},
    {"out", Form::kInteger, 1, 1024, true, 1, 3},
    {"parts", Form::kInteger, 1, 1 << 24, true, 0, 0},
    {"names", Form::kText, 0, 0, false, 0, 1 << 16},
    {"note", Form::kText, 0, 0, true, 0, 0},
    {"same", Form::kText, 0, 0, true, 0, 0, " same valid "},
    {"mode", Form::kText, 0, 0, true, 0, 0, " zeros reflect replicate circular "},
    {"writes", Form::kText, 0, 0, true, 0, 0, " floats bits both "},
    {"reads", Form::kText, 0, 0, true, 0, 0, " floats bits "},
    {"gives", Form::kText, 0, 0, true, 0, 0, " floats affine bits "},
    {"gelu", Form::kText, 0, 0, true, 0, 0, " none tanh "},
    {"shape", Form::kText, 0, 0, true, 0, 0, " shape "},
    {"sizes", Form::kSize, -1, double(kBillion), true, 0, 8},
    {"any", Form::kAny, 0, 0, true, 0, 16},
};

bool holds_one(const Kind& kind, const Json& value) {
  switch (kind.form) {
    case Form::kNode:
      return node_in(value) != nullptr;
    case Form::kNull:
      return value.is(Json::Kind::kNull);
    case Form::kBool:
      return value.is(Json::Kind::kBool);
    case Form::kSize:
      if (node_in(value) != nullptr) return true;
      [[fallthrough]];
    case Form::kInteger:
      return value.is(Json::Kind::kInteger) && value.number >= kind.low && value.number <= kind.high;
    case Form::kNumber:
      if (value.is(Json::Kind::kFloat) && kind.low < 0) return true;
      return value.is_number() && value.number >= kind.low && value.number <= kind.high;
    case Form::kText:
      return value.is(Json::Kind::kText) && value.text.size() <= 4096 &&
             (*kind.texts == '\0' || std::string_view(kind.texts).find(" " + value.text + " ") != std::string::npos);
    default:
      return true;
  }
}

bool holds(const Kind& kind, const Json& value) {
  if (!value.is(Json::Kind::kList)) return kind.alone && holds_one(kind, value);
  return kind.at_most > 0 && value.items.size() >= kind.at_least && value.items.size() <= kind.at_most &&
         std::all_of(value.items.begin(), value.items.end(), [&](const Json& item) { return holds_one(kind, item); });
}

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> words;
  for (size_t end; !text.empty(); text.remove_prefix(std::min(end + 1, text.size()))) {
    end = std::min(text.find(at), text.size());
    if (end > 0) words.push_back(text.substr(0, end));
  }
  return words;
}

struct Parameter {
  std::string name, kinds;
  bool required, many;
  int given = 0;

  explicit Parameter(std::string_view word) {
    const size_t at = word.find_first_of(":=");
    many = word[0] == '*';
    name = word.substr(many, at - many);
    required = word[at] == ':';
    kinds = word.substr(at + 1);
  }

  bool allows(const Json& value) const {
    for (const std::string_view word : split(kinds, '|')) {
      const auto kind =
          std::find_if(std::begin(kKinds), std::end(kKinds), [&](const Kind& k) { return word == k.name; });
      if (kind != std::end(kKinds) && holds(*kind, value)) return true;
    }
    return false;
  }
};

}  // namespace

const std::string* node_in(const Json& value) {
  const Json* name = value.has_keys({"node"}) ? value.find("node") : nullptr;
  return name != nullptr && name->is(Json::Kind::kText) ? &name->text : nullptr;
}

const Json* Arguments::find(std::string_view name) const {
  for (const auto& [own, value] : values_)
    if (own == name) return value->is(Json::Kind::kNull) ? nullptr : value;
  return nullptr;
}

int64_t Arguments::integer(std::string_view name, int64_t otherwise) const {
  const Json* value = find(name);
  return value == nullptr ? otherwise : value->integer;
}

double Arguments::number(std::string_view name, double otherwise) const {
  const Json* value = find(name);
  return value == nullptr ? otherwise : value->number;
}

bool Arguments::flag(std::string_view name, bool otherwise) const {
  const Json* value = find(name);
  return value == nullptr ? otherwise : value->boolean;
}

std::vector<int64_t> Arguments::integers(std::string_view name) const {
  std::vector<int64_t> found;
  const Json* value = find(name);
  if (value == nullptr) return found;
  if (!value->is(Json::Kind::kList)) return {value->integer};
  for (const Json& item : value->items) found.push_back(item.integer);
  return found;
}

Outcome Arguments::pair(std::string_view name, int64_t otherwise, int64_t* height, int64_t* width) const {
  const std::vector<int64_t> found = integers(name);
  const Json* value = find(name);
  if (value != nullptr && value->is(Json::Kind::kList) && found.size() != 2)
    return bad_file("argument '" + std::string(name) + "' must be of two dimensions");
  *height = found.empty() ? otherwise : found.front();
  *width = found.empty() ? otherwise : found.back();
  return {};
}

Outcome check_call(const std::string& what, const char* signature, const Json* args, const Json& kwargs,
                   Arguments* arguments) {
  std::vector<Parameter> parameters;
  for (const std::string_view word : split(signature, ' ')) parameters.emplace_back(word);
  const size_t count = args == nullptr ? 0 : args->items.size();
  for (size_t i = 0; i < count; ++i) {
    if (i >= parameters.size()) return bad_file(what + " has too many arguments");
    const bool packed = i + 1 == count && args->items[i].is(Json::Kind::kList);
    if (parameters[i].many && !packed) {
      arguments->add(
          parameters[i].name,
          Json(Json::Kind::kList, std::vector<Json>(args->items.begin() + static_cast<int64_t>(i), args->items.end())));
      break;
    }
    arguments->add(parameters[i].name, &args->items[i]);
  }
  for (size_t i = 0; i < kwargs.keys.size(); ++i) arguments->add(kwargs.keys[i], &kwargs.items[i]);
  for (const auto& [name, value] : arguments->all()) {
    const auto found =
        std::find_if(parameters.begin(), parameters.end(), [&n = name](const Parameter& p) { return p.name == n; });
    if (found == parameters.end()) return unsupported(what + " has no argument " + shown(name) + " here");
    if (found->given++ > 0) return bad_file(what + " is given '" + name + "' twice");
    if (!found->allows(*value)) return unsupported(what + " has an argument '" + name + "' that is no " + found->kinds);
  }
  for (const Parameter& p : parameters)
    if (p.required && p.given == 0) return bad_file(what + " needs an argument '" + p.name + "'");
  return {};
}

}  // namespace stompp::runtime
