#include "core/base/scratch.h"

#include <new>

// A sanitizer is to see where each call's own memory ends.
#if defined(__SANITIZE_ADDRESS__)
#define STOMPP_KEEPS_SCRATCH 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define STOMPP_KEEPS_SCRATCH 0
#endif
#endif
#ifndef STOMPP_KEEPS_SCRATCH
#define STOMPP_KEEPS_SCRATCH 1
#endif

namespace stompp {
namespace {

constexpr std::align_val_t kAlignment{kScratchAlignment};
constexpr size_t kPage = 4096;

void free_memory(const ScratchMemory& memory) { ::operator delete[](memory.data, kAlignment); }

// What a thread keeps, the longest kept first.
class Kept {
 public:
  ~Kept() {
    while (count_ > 0) free_memory(remove(0));
  }

  // Returns the smallest memory that is large enough, or none. Far larger memory is left to those who need it.
  ScratchMemory take(size_t wanted) {
    int best = count_;
    for (int i = 0; i < count_; ++i) {
      const size_t bytes = memories_[i].bytes;
      const bool fits = bytes >= wanted && bytes / kMostTimesWanted <= wanted;
      if (fits && (best == count_ || bytes < memories_[best].bytes)) best = i;
    }
    return best == count_ ? ScratchMemory{nullptr, 0} : remove(best);
  }

  void keep(const ScratchMemory& memory) {
    while (count_ == kMostMemories || bytes_ + memory.bytes > kMostKeptScratch) free_memory(remove(0));
    memories_[count_++] = memory;
    bytes_ += memory.bytes;
  }

 private:
  static constexpr int kMostMemories = 8;
  static constexpr size_t kMostTimesWanted = 4;

  ScratchMemory remove(int index) {
    const ScratchMemory removed = memories_[index];
    for (int i = index + 1; i < count_; ++i) memories_[i - 1] = memories_[i];
    --count_;
    bytes_ -= removed.bytes;
    return removed;
  }

  ScratchMemory memories_[kMostMemories] = {};
  int count_ = 0;
  size_t bytes_ = 0;
};

#if defined(__wasm__) && !defined(_REENTRANT)
Kept kept;  // there is one thread, which ends with the module
#else
thread_local Kept kept;
#endif

// The allocator keeps small memory itself.
bool is_kept(size_t bytes) { return STOMPP_KEEPS_SCRATCH && bytes >= kPage && bytes <= kMostKeptScratch; }

}  // namespace

ScratchMemory take_scratch(size_t wanted) {
  if (is_kept(wanted)) {
    const ScratchMemory memory = kept.take(wanted);
    if (memory.data != nullptr) return memory;
  }
  void* data = ::operator new[](wanted, kAlignment, std::nothrow);
  return {data, wanted};
}

void give_back_scratch(const ScratchMemory& memory) {
  if (memory.data == nullptr) return;
  if (is_kept(memory.bytes))
    kept.keep(memory);
  else
    free_memory(memory);
}

}  // namespace stompp
