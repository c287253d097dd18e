// What a step inside the library answers: a status of the C API, and a text for people.
#pragma once

#include <string>
#include <utility>

#include "core/base/status.h"
#include "runtime/stompp.h"

namespace stompp::runtime {

struct [[nodiscard]] Outcome {
  stompp_status status = STOMPP_OK;
  std::string text;

  bool is_ok() const { return status == STOMPP_OK; }
};

inline Outcome bad_argument(std::string text) { return {STOMPP_BAD_ARGUMENT, std::move(text)}; }
inline Outcome bad_file(std::string text) { return {STOMPP_BAD_FILE, std::move(text)}; }
inline Outcome unsupported(std::string text) { return {STOMPP_UNSUPPORTED, std::move(text)}; }

inline Outcome of(const Status& status, stompp_status kind) {
  return status.is_ok() ? Outcome{} : Outcome{kind, status.message()};
}

// Cuts what a message shows of a file.
inline std::string shown(const std::string& text) {
  return "'" + (text.size() <= 80 ? text : text.substr(0, 80) + "...") + "'";
}

// A path is the caller's own, and its end tells most. An error's text has room for this much beside what is wrong.
inline std::string shown_path(const std::string& path) {
  constexpr size_t kMost = 300;
  return "'" + (path.size() <= kMost ? path : "..." + path.substr(path.size() - kMost)) + "'";
}

}  // namespace stompp::runtime

// Leaves the function with the outcome of `expression` unless that is good.
#define STOMPP_TRY(expression)                                         \
  do {                                                                 \
    if (auto outcome = (expression); !outcome.is_ok()) return outcome; \
  } while (false)
