#include "runtime/file/json.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <limits>

namespace stompp::runtime {
namespace {

constexpr int kDeepest = 64;
// A packed ResNet-50 has some ten thousand. Each takes 100 bytes, and one of a file as few as two.
constexpr int64_t kMostValues = int64_t{1} << 20;

bool parse_double(const char* begin, const char* end, double* value) {
#if defined(__cpp_lib_to_chars)
  const auto [stop, error] = std::from_chars(begin, end, *value);
  return error == std::errc() && stop == end;
#else
  *value = std::strtod(std::string(begin, end).c_str(), nullptr);  // where there is one locale
  return std::isfinite(*value);
#endif
}

class Parser {
 public:
  Parser(std::string_view text, bool constants) : text_(text), constants_(constants) {}

  Outcome parse(Json* value) {
    STOMPP_TRY(parse_value(value, 1));
    skip_space();
    return at_ < text_.size() ? error("something follows the value") : Outcome{};
  }

 private:
  Outcome error(const std::string& what) const {
    return bad_file("no strict JSON: " + what + " at byte " + std::to_string(at_));
  }
  bool done() const { return at_ >= text_.size(); }
  char next() const { return done() ? '\0' : text_[at_]; }
  void skip_space() {
    while (!done() && (next() == ' ' || next() == '\t' || next() == '\n' || next() == '\r')) ++at_;
  }
  bool skip(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return false;
    at_ += word.size();
    return true;
  }

  Outcome parse_value(Json* value, int depth) {
    skip_space();
    if (++values_ > kMostValues) return error("more than " + std::to_string(kMostValues) + " values");
    if (next() == '{' || next() == '[') {
      if (depth > kDeepest) return error("more than 64 lists and objects in each other");
      return parse_items(value, depth, next() == '{');
    }
    value->kind = Json::Kind::kText;
    if (next() == '"') return parse_text(&value->text);
    value->kind = Json::Kind::kBool;
    if (skip("true")) return value->boolean = true, Outcome{};
    if (skip("false")) return {};
    value->kind = Json::Kind::kNull;
    if (skip("null")) return {};
    return parse_number(value);
  }

  Outcome parse_items(Json* value, int depth, bool object) {
    value->kind = object ? Json::Kind::kObject : Json::Kind::kList;
    const char end = object ? '}' : ']';
    ++at_;
    for (skip_space(); next() != end; skip_space()) {
      if (!value->items.empty() && !skip(",")) return error("a missing comma");
      if (object) {
        skip_space();
        if (next() != '"') return error("a missing key");
        STOMPP_TRY(parse_text(&value->keys.emplace_back()));
        skip_space();
        if (!skip(":")) return error("a missing colon");
      }
      STOMPP_TRY(parse_value(&value->items.emplace_back(), depth + 1));
    }
    ++at_;
    std::vector<std::string_view> sorted(value->keys.begin(), value->keys.end());
    std::sort(sorted.begin(), sorted.end());
    const auto twice = std::adjacent_find(sorted.begin(), sorted.end());
    return twice == sorted.end() ? Outcome{} : error("the key " + shown(std::string(*twice)) + " twice, which ends");
  }

  Outcome parse_text(std::string* out) {
    for (++at_; next() != '"';) {
      if (done() || static_cast<unsigned char>(next()) < 0x20) return error("a text without an end");
      if (next() != '\\') {
        STOMPP_TRY(copy_character(out));
        continue;
      }
      ++at_;
      constexpr std::string_view kEscapes = "\"\\/bfnrt", kMeant = "\"\\/\b\f\n\r\t";
      const size_t escape = done() ? std::string_view::npos : kEscapes.find(next());
      if (escape != std::string_view::npos) {
        out->push_back(kMeant[escape]);
        ++at_;
      } else {
        STOMPP_TRY(parse_code(out));
      }
    }
    ++at_;
    return {};
  }

  // Copies one character of UTF-8, in the shortest form and no surrogate.
  Outcome copy_character(std::string* out) {
    const auto byte = [&](size_t i) {
      return at_ + i < text_.size() ? static_cast<unsigned char>(text_[at_ + i]) : 0u;
    };
    const unsigned first = byte(0);
    const size_t count = first < 0x80   ? 1
                         : first < 0xc2 ? 0
                         : first < 0xe0 ? 2
                         : first < 0xf0 ? 3
                         : first < 0xf5 ? 4
                                        : 0;
    if (count == 0) return error("no UTF-8");
    for (size_t i = 1; i < count; ++i)
      if ((byte(i) & 0xc0) != 0x80) return error("no UTF-8");
    const unsigned second = byte(1);
    const bool too_long = (first == 0xe0 && second < 0xa0) || (first == 0xf0 && second < 0x90);
    if (too_long || (first == 0xed && second > 0x9f) || (first == 0xf4 && second > 0x8f)) return error("no UTF-8");
    out->append(text_.substr(at_, count));
    at_ += count;
    return {};
  }

  Outcome parse_hex(uint32_t* code) {
    if (!skip("u") || at_ + 4 > text_.size()) return error("an unknown escape");
    const char* begin = text_.data() + at_;
    const auto [stop, failed] = std::from_chars(begin, begin + 4, *code, 16);
    if (failed != std::errc() || stop != begin + 4) return error("an unknown escape");
    at_ += 4;
    return {};
  }

  // \uXXXX, or two of them that are a pair of surrogates.
  Outcome parse_code(std::string* out) {
    uint32_t code = 0, low = 0;
    STOMPP_TRY(parse_hex(&code));
    if (code >= 0xd800 && code < 0xe000) {
      if (code >= 0xdc00 || !skip("\\")) return error("half a character");
      STOMPP_TRY(parse_hex(&low));
      if (low < 0xdc00 || low >= 0xe000) return error("half a character");
      code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
    }
    const auto put = [&](uint32_t byte) { out->push_back(static_cast<char>(byte)); };
    if (code < 0x80) return put(code), Outcome{};
    if (code >= 0x10000) {
      put(0xf0 | code >> 18);
      put(0x80 | (code >> 12 & 0x3f));
    } else if (code >= 0x800) {
      put(0xe0 | code >> 12);
    }
    put(code < 0x800 ? 0xc0 | code >> 6 : 0x80 | (code >> 6 & 0x3f));
    put(0x80 | (code & 0x3f));
    return {};
  }

  Outcome parse_number(Json* value) {
    const size_t begin = at_;
    value->kind = Json::Kind::kFloat;
    if (constants_) {
      const double infinity = std::numeric_limits<double>::infinity();
      if (skip("NaN")) return value->number = std::numeric_limits<double>::quiet_NaN(), Outcome{};
      if (skip("Infinity")) return value->number = infinity, Outcome{};
      if (skip("-Infinity")) return value->number = -infinity, Outcome{};
    }
    const auto digits = [&] {
      const size_t first = at_;
      while (next() >= '0' && next() <= '9') ++at_;
      return at_ > first;
    };
    bool integer = true;
    skip("-");
    const bool zero = next() == '0';
    const size_t first = at_;
    if (!digits() || (zero && at_ > first + 1)) return error("no value");
    if (skip(".")) {
      integer = false;
      if (!digits()) return error("a number without an end");
    }
    if (skip("e") || skip("E")) {
      integer = false;
      if (!skip("-")) skip("+");
      if (!digits()) return error("a number without an end");
    }
    const char *from = text_.data() + begin, *to = text_.data() + at_;
    if (!integer) return parse_double(from, to, &value->number) ? Outcome{} : error("a number that is too large");
    if (std::from_chars(from, to, value->integer).ec != std::errc()) return error("a number that is too large");
    value->kind = Json::Kind::kInteger;
    value->number = static_cast<double>(value->integer);
    return {};
  }

  std::string_view text_;
  bool constants_;
  size_t at_ = 0;
  int64_t values_ = 0;
};

}  // namespace

const Json* Json::find(std::string_view key) const {
  const auto found = std::find(keys.begin(), keys.end(), key);
  return found == keys.end() ? nullptr : &items[static_cast<size_t>(found - keys.begin())];
}

bool Json::has_keys(std::initializer_list<std::string_view> names) const {
  return kind == Kind::kObject && keys.size() == names.size() &&
         std::all_of(names.begin(), names.end(), [&](std::string_view name) { return find(name) != nullptr; });
}

Outcome parse_json(std::string_view text, bool constants, Json* value) { return Parser(text, constants).parse(value); }

}  // namespace stompp::runtime
