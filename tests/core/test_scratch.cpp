// What a thread keeps of the memory that its calls took.
#include <cstdint>
#include <string>
#ifndef __wasm__
#include <thread>
#endif

#include "check.h"
#include "core/base/scratch.h"

namespace stompp {
namespace {

// Where the sanitizer looks, each call has memory of its own.
bool keeps() {
  const ScratchMemory first = take_scratch(kMostKeptScratch);
  give_back_scratch(first);
  const ScratchMemory second = take_scratch(kMostKeptScratch);
  give_back_scratch(second);
  return first.data == second.data;
}

TEST(scratch_is_aligned_and_writable) {
  for (int64_t count : {1, 63, 64, 5000, 100000}) {
    const Scratch<uint16_t> memory = scratch_of<uint16_t>(count);
    CHECK(reinterpret_cast<uintptr_t>(memory.get()) % kScratchAlignment == 0, std::to_string(count));
    for (int64_t i = 0; i < count; ++i) memory[i] = static_cast<uint16_t>(i);
    CHECK(memory[count - 1] == static_cast<uint16_t>(count - 1), std::to_string(count));
  }
}

// Their bytes are 8 modulo the number of addresses, with 64 bits and with 32.
TEST(scratch_beyond_all_addresses_is_null) {
  const int64_t count = (int64_t{1} << 61) + 1;
  CHECK(scratch_of<uint64_t>(count) == nullptr, "there are no such addresses");
}

TEST(scratch_in_use_is_never_given_twice) {
  const Scratch<uint8_t> first = scratch_of<uint8_t>(1 << 20);
  const Scratch<uint8_t> second = scratch_of<uint8_t>(1 << 20);
  CHECK(first.get() + (1 << 20) <= second.get() || second.get() + (1 << 20) <= first.get(), "they overlap");
}

TEST(scratch_is_kept_for_calls_that_want_as_much) {
  if (!keeps()) return;
  void* data[2] = {};
  for (void*& at : data) {
    const Scratch<uint8_t> memory = scratch_of<uint8_t>(3000000);
    at = memory.get();
    const Scratch<uint8_t> little = scratch_of<uint8_t>(8192);
    CHECK(little.get() < memory.get() || little.get() >= memory.get() + 3000000, "they overlap");
  }
  CHECK(data[0] == data[1], "the second call got other memory");
  const ScratchMemory little = take_scratch(8192);
  CHECK(little.bytes < 3000000, "a small call took what large ones need");
  give_back_scratch(little);
}

TEST(scratch_beyond_the_limit_replaces_what_was_kept_longest) {
  if (!keeps()) return;
  ScratchMemory memories[12];
  for (ScratchMemory& memory : memories) memory = take_scratch(kMostKeptScratch / 4);
  for (const ScratchMemory& memory : memories) give_back_scratch(memory);
  for (int i = 8; i < 12; ++i) {
    const ScratchMemory again = take_scratch(kMostKeptScratch / 4);
    CHECK(again.data == memories[i].data, "memory " + std::to_string(i));
    memories[i] = again;
  }
  for (int i = 8; i < 12; ++i) give_back_scratch(memories[i]);
  const ScratchMemory huge = take_scratch(kMostKeptScratch + 1);
  give_back_scratch(huge);  // and not kept, which would have replaced all others
  const ScratchMemory last = take_scratch(kMostKeptScratch / 4);
  CHECK(last.data == memories[8].data, "what was kept is gone");
  give_back_scratch(last);
}

#ifndef __wasm__  // which has no threads
TEST(scratch_stays_with_its_thread) {
  void* mine = scratch_of<uint8_t>(1 << 20).get();
  void* of_other = nullptr;
  std::thread([&of_other] { of_other = scratch_of<uint8_t>(1 << 20).get(); }).join();
  CHECK(mine != of_other, "a thread got what another one keeps");
}
#endif

}  // namespace
}  // namespace stompp
