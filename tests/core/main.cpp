// Runs every case once for each implementation that this processor supports, or for the one named by STOMPP_CPU.
#include <cstdlib>

#include "check.h"
#include "core/dispatch.h"

int main() {
  using namespace stompp;
  size_t count = 0;
  const Implementation* const* list = implementations(&count);
  const char* only = std::getenv("STOMPP_CPU");
  int passed = 0, failed = 0;
  for (size_t i = 0; i < count; ++i) {
    const std::string name = list[i]->name;
    if (!list[i]->supported() || (only != nullptr && name != only)) {
      std::printf("%s: not run here\n", name.c_str());
      continue;
    }
    if (!select_implementation(name.c_str()).is_ok()) return 2;
    for (const test::Case& test : test::cases()) {
      const int before = test::failures();
      test.run();
      const bool ok = test::failures() == before;
      (ok ? passed : failed) += 1;
      std::printf("%s %s: %s\n", name.c_str(), test.name, ok ? "ok" : "FAILED");
    }
  }
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}
