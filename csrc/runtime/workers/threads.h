// Whether the system has threads: a browser gives a module of WebAssembly none unless it is compiled for them.
#pragma once

#if defined(__wasm__) && !defined(_REENTRANT)
#define STOMPP_HAS_THREADS 0
#else
#define STOMPP_HAS_THREADS 1
#include <mutex>
#endif

namespace stompp::runtime {

#if STOMPP_HAS_THREADS
using Mutex = std::mutex;
using Lock = std::lock_guard<std::mutex>;
#else
struct Mutex {};
struct Lock {
  explicit Lock(const Mutex&) {}
};
#endif

}  // namespace stompp::runtime
