// Which taps of a convolution lie inside its input.
#pragma once

#include <cstdint>

#include "core/base/bits.h"

namespace stompp {

// The taps [h_begin, h_end) x [w_begin, w_end) of a row that lie inside the input; the others read padding.
struct ValidTaps {
  int64_t h_begin, h_end, w_begin, w_end;

  int64_t count() const { return (h_end - h_begin) * (w_end - w_begin); }
  bool operator==(const ValidTaps& other) const {
    return h_begin == other.h_begin && h_end == other.h_end && w_begin == other.w_begin && w_end == other.w_end;
  }
};

// Finds the taps of one axis, `size` of them from `start` on, that lie in [0, limit).
inline void clip_taps(int64_t start, int64_t dilation, int64_t size, int64_t limit, int64_t* begin, int64_t* end) {
  *begin = 0;
  *end = size;
  if (start >= 0 && start + (size - 1) * dilation < limit) return;
  const int64_t first = start < 0 ? ceil_div(-start, dilation) : 0;
  const int64_t last = start < limit ? ceil_div(limit - start, dilation) : 0;
  *end = last < size ? last : size;
  *begin = first < *end ? first : *end;
}

// Returns how many windows, `stride` apart, from one that lies inside on are inside too; at most `most`.
inline int64_t whole_windows(int64_t start, int64_t stride, int64_t dilation, int64_t size, int64_t limit,
                             int64_t most) {
  const int64_t last = limit - 1 - (size - 1) * dilation, count = (last - start) / stride + 1;
  return count < most ? count : most;
}

}  // namespace stompp
