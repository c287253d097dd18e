// A test program's few needs: named cases, a check that counts, random numbers that repeat, threads that take turns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/base/parallel.h"

namespace stompp::test {

struct Case {
  const char* name;
  std::function<void()> run;
};

inline std::vector<Case>& cases() {
  static std::vector<Case> all;
  return all;
}

inline int& failures() {
  static int count = 0;
  return count;
}

struct Register {
  Register(const char* name, std::function<void()> run) { cases().push_back({name, std::move(run)}); }
};

inline void fail(const char* file, int line, const std::string& what) {
  ++failures();
  if (failures() <= 20) std::printf("%s:%d: %s\n", file, line, what.c_str());
}

// splitmix64 (Steele, Lea & Flood 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t between(int64_t low, int64_t high) { return low + static_cast<int64_t>(next() % (high - low + 1)); }
  float sign() { return (next() & 1) != 0 ? -1.0f : 1.0f; }
  float uniform() { return static_cast<float>(next() >> 40) * 0x1p-23f - 1.0f; }  // [-1, 1)

 private:
  uint64_t state_;
};

// An exact allocation of its own: std::vector may leave room behind the end.
template <class T>
struct Buffer {
  explicit Buffer(int64_t n) : size(n), data(new T[static_cast<size_t>(n)]()) {}
  T& operator[](int64_t i) { return data[static_cast<size_t>(i)]; }
  T* get() { return data.get(); }
  int64_t size;
  std::unique_ptr<T[]> data;
};

// Ranges in turn, from the last to the first: results may not lean on the order.
inline Parallel pool(int threads) {
  return {[](int64_t count, int64_t grain, Parallel::Body body, void* context) {
            for (int64_t begin = (count - 1) / grain * grain; begin >= 0; begin -= grain)
              body(begin, std::min(begin + grain, count), context);
          },
          threads};
}

}  // namespace stompp::test

#define STOMPP_CONCAT_(a, b) a##b
#define STOMPP_CONCAT(a, b) STOMPP_CONCAT_(a, b)
#define TEST(name)                                                                 \
  static void name();                                                              \
  static const stompp::test::Register STOMPP_CONCAT(register_, name){#name, name}; \
  static void name()
// `what` is made of strings only where it is needed: most checks stand in loops over outputs.
#define CHECK(condition, what) ((condition) ? void() : stompp::test::fail(__FILE__, __LINE__, (what)))
