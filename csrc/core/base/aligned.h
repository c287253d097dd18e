// Floats whose memory begins with a cache line, so that none of their vectors lies in two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace stompp {

struct AlignedDelete {
  static constexpr std::align_val_t kAlignment{64};
  void operator()(float* p) const { ::operator delete[](p, kAlignment); }
};
using AlignedFloats = std::unique_ptr<float[], AlignedDelete>;

// Returns null where there is no memory or are no addresses for them.
inline AlignedFloats aligned_floats(int64_t count) {
  if (count > PTRDIFF_MAX / static_cast<int64_t>(sizeof(float))) return nullptr;
  const size_t bytes = static_cast<size_t>(count) * sizeof(float);
  return AlignedFloats(static_cast<float*>(::operator new[](bytes, AlignedDelete::kAlignment, std::nothrow)));
}

}  // namespace stompp
