// Strict JSON: no key occurs twice, nothing follows the value, and at most 64 lists and objects lie in each other.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/outcome.h"

namespace stompp::runtime {

struct Json {
  enum class Kind { kNull, kBool, kInteger, kFloat, kText, kList, kObject };

  Json() = default;
  explicit Json(bool value) : kind(Kind::kBool), boolean(value) {}
  explicit Json(std::string value) : kind(Kind::kText), text(std::move(value)) {}
  Json(Kind list_or_object, std::vector<Json> values) : kind(list_or_object), items(std::move(values)) {}

  Kind kind = Kind::kNull;
  bool boolean = false;
  int64_t integer = 0;
  double number = 0;  // of integers too
  std::string text;
  std::vector<std::string> keys;  // of an object, as many as items
  std::vector<Json> items;

  bool is(Kind k) const { return kind == k; }
  bool is_text(std::string_view value) const { return kind == Kind::kText && text == value; }
  bool is_number() const { return kind == Kind::kInteger || kind == Kind::kFloat; }

  // Returns the value of a key, or null.
  const Json* find(std::string_view key) const;
  // Says whether this is an object with these keys and no others.
  bool has_keys(std::initializer_list<std::string_view> names) const;
};

// `constants` allows Infinity, -Infinity and NaN, as Python writes them.
Outcome parse_json(std::string_view text, bool constants, Json* value);

}  // namespace stompp::runtime
