// What a core function answers: nothing is printed, thrown or aborted across the core's boundary.
#pragma once

namespace stompp {

class [[nodiscard]] Status {
 public:
  static Status ok() { return Status(nullptr); }
  // `message` must outlive the status, as a string literal does.
  static Status error(const char* message) { return Status(message); }

  bool is_ok() const { return message_ == nullptr; }
  const char* message() const { return message_ == nullptr ? "ok" : message_; }

 private:
  explicit Status(const char* message) : message_(message) {}
  const char* message_;
};

// What an op answers where there are no kernels to run.
inline Status no_implementation() { return Status::error("STOMPP_CPU names no implementation that can run here"); }

}  // namespace stompp
