// Runs every case once for each implementation that this processor supports, and for those of
// emulated_amx.h; or for the one
// named by STOMPP_CPU.
#include <cstdlib>

#include "check.h"
#include "core/isa/dispatch.h"
#include "emulated_amx.h"

int main() {
  using namespace stompp;
  size_t count = 0;
  const Implementation* const* list = implementations(&count);
  std::vector<const Implementation*> all(list, list + count);
  const std::vector<const Implementation*>& tiles = test::tile_implementations();
  all.insert(all.end(), tiles.begin(), tiles.end());
  const char* only = std::getenv("STOMPP_CPU");
  int passed = 0, failed = 0;
  for (const Implementation* implementation : all) {
    const std::string name = implementation->name;
    if (!is_supported(*implementation) || (only != nullptr && name != only)) {
      std::printf("%s: not run here\n", name.c_str());
      continue;
    }
    select_implementation(*implementation);
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
