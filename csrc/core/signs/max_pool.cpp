#include "core/signs/max_pool.h"

#include <cstring>

#include "core/base/bits.h"
#include "core/base/scratch.h"
#include "core/base/workers.h"
#include "core/product/taps.h"

namespace stompp {
namespace {

// This many words are read in about 10 microseconds.
constexpr int64_t kTaskWords = int64_t{1} << 16;

int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation, bool ceil_mode) {
  const int64_t room = size + 2 * padding - dilation * (kernel - 1) - 1;
  if (!ceil_mode) return room < 0 ? 0 : room / stride + 1;
  if (room <= -stride) return 0;
  // No window may begin in the padding behind the input.
  const int64_t windows = (room < 0 ? 0 : ceil_div(room, stride)) + 1, most = ceil_div(size + padding, stride);
  return windows < most ? windows : most;
}

// Computes the AND of `runs` runs of words, `stride` words apart. kWords is their number, or 0 for `words`.
template <int kWords>
void and_runs(const uint32_t* first, int64_t runs, int64_t stride, int64_t words, uint32_t* out) {
  if constexpr (kWords > 0) {
    uint32_t all[kWords];
    std::memcpy(all, first, sizeof(all));
    for (int64_t run = 1; run < runs; ++run)
      for (int i = 0; i < kWords; ++i) all[i] &= first[run * stride + i];
    std::memcpy(out, all, sizeof(all));
  } else {
    std::memcpy(out, first, static_cast<size_t>(words) * sizeof(*out));
    for (int64_t run = 1; run < runs; ++run)
      for (int64_t i = 0; i < words; ++i) out[i] &= first[run * stride + i];
  }
}

// Pools the windows of one line of pixels, each pixel the AND of a column already. kTaps are those of a whole window,
// or 0 for kernel_w.
template <int kWords, int kTaps>
void pool_line(const uint32_t* line, const MaxPoolShape& s, int64_t out_width, uint32_t* out) {
  const int64_t words = kWords > 0 ? kWords : s.words, taps = kTaps > 0 ? kTaps : s.kernel_w;
  const int64_t tap_words = s.dilation_w * words;
  for (int64_t ow = 0; ow < out_width;) {
    const int64_t left = ow * s.stride_w - s.padding_w;
    int64_t begin = 0, end = 0;
    clip_taps(left, s.dilation_w, taps, s.width, &begin, &end);
    if (end - begin < taps) {  // padding is -1, all ones: it is left out
      and_runs<kWords>(line + left * words + begin * tap_words, end - begin, tap_words, words, out + ow * words);
      ++ow;
      continue;
    }
    const int64_t windows = whole_windows(left, s.stride_w, s.dilation_w, taps, s.width, out_width - ow);
    for (int64_t i = 0; i < windows; ++i)
      and_runs<kWords>(line + (left + i * s.stride_w) * words, taps, tap_words, words, out + (ow + i) * words);
    ow += windows;
  }
}

using PoolLine = void (*)(const uint32_t* line, const MaxPoolShape& shape, int64_t out_width, uint32_t* out);

template <int kWords>
PoolLine pool_line_for(int64_t taps) {
  return taps == 2 ? pool_line<kWords, 2> : taps == 3 ? pool_line<kWords, 3> : pool_line<kWords, 0>;
}

PoolLine pool_line_for(int64_t words, int64_t taps) {
  switch (words) {
    case 1:
      return pool_line_for<1>(taps);
    case 2:
      return pool_line_for<2>(taps);
    case 4:
      return pool_line_for<4>(taps);
    default:
      return pool_line_for<0>(taps);
  }
}

// What every thread reads.
struct Pool {
  const uint32_t* x;
  const MaxPoolShape& shape;
  uint32_t* out;
  const PoolLine pool_line = pool_line_for(shape.words, shape.kernel_w);
  const int64_t out_height = shape.out_height(), out_width = shape.out_width(), line_words = shape.width * shape.words;

  int64_t tasks() const { return shape.batch * out_height; }
};

// One thread's memory and work. A task is a line of windows.
class Worker {
 public:
  explicit Worker(const Pool& pool) : p_(pool), line_(scratch_of<uint32_t>(pool.line_words)) {}
  bool failed() const { return line_ == nullptr; }

  void run(int64_t task) {
    const MaxPoolShape& s = p_.shape;
    const int64_t top = task % p_.out_height * s.stride_h - s.padding_h;
    int64_t begin = 0, end = 0;
    clip_taps(top, s.dilation_h, s.kernel_h, s.height, &begin, &end);
    const uint32_t* row = p_.x + (task / p_.out_height * s.height + top + begin * s.dilation_h) * p_.line_words;
    and_runs<0>(row, end - begin, s.dilation_h * p_.line_words, p_.line_words, line_.get());
    p_.pool_line(line_.get(), s, p_.out_width, p_.out + task * p_.out_width * s.words);
  }

 private:
  const Pool& p_;
  const Scratch<uint32_t> line_;
};

}  // namespace

int64_t MaxPoolShape::out_height() const {
  return out_size(height, kernel_h, stride_h, padding_h, dilation_h, ceil_mode);
}

int64_t MaxPoolShape::out_width() const {
  return out_size(width, kernel_w, stride_w, padding_w, dilation_w, ceil_mode);
}

Status check_max_pool(const MaxPoolShape& s) {
  constexpr int64_t kMaxSize = int64_t{1} << 31;
  if (s.batch < 0 || s.height < 1 || s.width < 1 || s.words < 1) return Status::error("input sizes must be positive");
  if (s.height >= kMaxSize || s.width >= kMaxSize) return Status::error("input sizes must be below 2^31");
  if (s.kernel_h < 1 || s.kernel_w < 1 || s.stride_h < 1 || s.stride_w < 1 || s.dilation_h < 1 || s.dilation_w < 1)
    return Status::error("kernel, stride and dilation must be at least 1");
  if (s.kernel_h >= kMaxSize || s.kernel_w >= kMaxSize || s.stride_h >= kMaxSize || s.stride_w >= kMaxSize ||
      s.dilation_h >= kMaxSize || s.dilation_w >= kMaxSize)
    return Status::error("kernel, stride and dilation must be below 2^31");
  if (s.padding_h < 0 || s.padding_w < 0) return Status::error("padding must not be negative");
  if (s.padding_h > s.kernel_h / 2 || s.padding_w > s.kernel_w / 2)
    return Status::error("padding must be at most half of kernel");
  if ((s.padding_h > 0 || s.padding_w > 0) && (s.dilation_h > 1 || s.dilation_w > 1))
    return Status::error("dilation must be 1 where padding is not 0");
  if (s.out_height() < 1 || s.out_width() < 1) return Status::error("the window reaches beyond the padded input");
  return Status::ok();
}

Status max_pool2d_signs(const uint32_t* x, const MaxPoolShape& shape, uint32_t* out, const Parallel& pool) {
  const MaxPoolShape& s = shape;
  const Pool job = {x, shape, out};
  const int64_t cost = (s.kernel_h < s.height ? s.kernel_h : s.height) * job.line_words + job.out_width * s.words;
  return run_tasks<Worker>(job, pool, kTaskWords / cost + 1);
}

}  // namespace stompp
