// What a core function answers: nothing is printed, thrown or aborted across the core's boundary.
#pragma once

namespace stompp {

class [[nodiscard]] Status {
 public:
  static Status ok() { return Status(nullptr); }
  // `message` must outlive the status: a string literal.
  static Status error(const char* message) { return Status(message); }

  bool is_ok() const { return message_ == nullptr; }
  const char* message() const { return message_ == nullptr ? "ok" : message_; }

 private:
  explicit Status(const char* message) : message_(message) {}
  const char* message_;
};

}  // namespace stompp
