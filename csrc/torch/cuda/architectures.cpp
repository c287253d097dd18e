#include "torch/cuda/architectures.h"

#include <cstdlib>
#include <initializer_list>

#define STOMPP_TEXT_OF(name) #name
#define STOMPP_TEXT(macro) STOMPP_TEXT_OF(macro)

namespace stompp::binding {
namespace {

constexpr int kHopper = 90;

// GPUs of systems on a chip (CUDA Programming Guide, "Binary Compatibility": none between these and others).
bool is_on_a_chip(int capability) {
  for (const int known : {72, 87, 101, 110})
    if (capability == known) return true;
  return false;
}

struct Code {
  int capability;
  bool exact;  // "90a": for that one architecture
  bool is_ptx;

  bool runs_on(int device) const {
    if (exact || capability == device) return capability == device;
    if (is_ptx) return capability <= device;
    return capability <= device && capability / 10 == device / 10 && !is_on_a_chip(capability) && !is_on_a_chip(device);
  }
};

// Reads one name and moves behind it.
Code next_code(const char** names) {
  char* end = nullptr;
  Code code = {static_cast<int>(std::strtol(*names, &end, 10)), false, false};
  for (; *end != '\0' && *end != '_'; ++end) {
    code.exact = code.exact || *end == 'a';
    code.is_ptx = code.is_ptx || *end == 'p';
  }
  *names = *end == '_' ? end + 1 : end;
  return code;
}

}  // namespace

const char* architectures() { return STOMPP_TEXT(STOMPP_CUDA_ARCHITECTURES); }

int code_for(int capability) {
  int best = 0;
  bool best_is_ptx = true;
  for (const char* names = architectures(); *names != '\0';) {
    const Code code = next_code(&names);
    if (!code.runs_on(capability) || (code.is_ptx && !best_is_ptx)) continue;
    if (code.capability > best || best_is_ptx > code.is_ptx) best = code.capability;
    best_is_ptx = code.is_ptx;
  }
  // Hopper's own instructions are in its machine code alone: what it has as PTX for later ones is older kernels.
  return best == kHopper && capability > kHopper ? kHopper - 1 : best;
}

}  // namespace stompp::binding
