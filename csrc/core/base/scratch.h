// Memory that a call needs for itself. A thread keeps it for its next call: memory that the system hands out anew costs
// a page fault every 4 KB, which takes longer than many a product that uses the page.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

namespace stompp {

constexpr size_t kScratchAlignment = 64;         // a cache line
constexpr size_t kMostKeptScratch = 4096 << 10;  // bytes that a thread keeps; what is larger is given back at once

struct ScratchMemory {
  void* data;  // null where there is no memory
  size_t bytes;
};

// The bytes are not zeroed, and at least as many as wanted.
ScratchMemory take_scratch(size_t wanted);
void give_back_scratch(const ScratchMemory& memory);

struct GiveBackScratch {
  size_t bytes = 0;
  void operator()(void* data) const { give_back_scratch({data, bytes}); }
};

// For types without constructors. It is given back by the thread that took it.
template <class T>
using Scratch = std::unique_ptr<T[], GiveBackScratch>;

// Returns null where there is no memory for them, and no addresses, as there are none with 32 bits for a large image.
template <class T>
Scratch<T> scratch_of(int64_t count) {
  if (count > PTRDIFF_MAX / static_cast<int64_t>(sizeof(T))) return nullptr;
  const ScratchMemory memory = take_scratch(static_cast<size_t>(count) * sizeof(T));
  return Scratch<T>(static_cast<T*>(memory.data), {memory.bytes});
}

}  // namespace stompp
