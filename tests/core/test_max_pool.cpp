// Max pooling of signs against plain loops.
#include <string>

#include "check.h"
#include "core/signs/max_pool.h"

namespace stompp {
namespace {

using test::Buffer;
using test::Random;

constexpr Parallel kPool = {[](int64_t count, int64_t grain, Parallel::Body body, void* context) {
                              for (int64_t begin = 0; begin < count; begin += grain)
                                body(begin, begin + grain < count ? begin + grain : count, context);
                            },
                            1};

uint32_t expected(Buffer<uint32_t>& x, const MaxPoolShape& s, int64_t n, int64_t oh, int64_t ow, int64_t word) {
  uint32_t all = 0xffffffffu;
  for (int64_t kh = 0; kh < s.kernel_h; ++kh)
    for (int64_t kw = 0; kw < s.kernel_w; ++kw) {
      const int64_t h = oh * s.stride_h - s.padding_h + kh * s.dilation_h;
      const int64_t w = ow * s.stride_w - s.padding_w + kw * s.dilation_w;
      if (h < 0 || h >= s.height || w < 0 || w >= s.width) continue;
      all &= x[((n * s.height + h) * s.width + w) * s.words + word];
    }
  return all;
}

TEST(max_pooling_equals_plain_loops) {
  Random random(21);
  int done = 0;
  for (int round = 0; round < 400; ++round) {
    const auto some = [&](int64_t low, int64_t high) { return random.between(low, high); };
    const MaxPoolShape s = {some(1, 3), some(1, 9), some(1, 20), some(1, 6), some(1, 5), some(1, 5),     some(1, 4),
                            some(1, 4), some(0, 2), some(0, 2),  some(1, 2), some(1, 2), some(0, 1) == 1};
    if (!check_max_pool(s).is_ok()) continue;
    ++done;
    const int64_t OH = s.out_height(), OW = s.out_width();
    Buffer<uint32_t> x(s.batch * s.height * s.width * s.words), out(s.batch * OH * OW * s.words);
    for (int64_t i = 0; i < x.size; ++i) x[i] = static_cast<uint32_t>(random.next() | random.next());
    const Status status = max_pool2d_signs(x.get(), s, out.get(), kPool);
    CHECK(status.is_ok(), status.message());
    for (int64_t i = 0; i < out.size; ++i) {
      const int64_t pixel = i / s.words;
      CHECK(out[i] == expected(x, s, pixel / OW / OH, pixel / OW % OH, pixel % OW, i % s.words),
            "round " + std::to_string(round) + ", word " + std::to_string(i));
    }
  }
  CHECK(done > 50, "shapes that fit");
}

TEST(max_pooling_refuses_what_does_not_fit) {
  const MaxPoolShape good = {1, 4, 4, 1, 3, 3, 2, 2, 1, 1, 1, 1, false};
  CHECK(check_max_pool(good).is_ok(), "good");
  const auto refused = [&](int64_t MaxPoolShape::* member, int64_t value) {
    MaxPoolShape shape = good;
    shape.*member = value;
    return !check_max_pool(shape).is_ok();
  };
  for (int64_t value : {int64_t{-1}, int64_t{0}, int64_t{1} << 31, INT64_MAX}) {
    CHECK(refused(&MaxPoolShape::height, value), "height");
    CHECK(refused(&MaxPoolShape::kernel_w, value), "kernel");
    CHECK(refused(&MaxPoolShape::stride_h, value), "stride");
    CHECK(refused(&MaxPoolShape::dilation_w, value), "dilation");
  }
  CHECK(refused(&MaxPoolShape::padding_h, 2), "padding beyond half of the kernel");
  CHECK(refused(&MaxPoolShape::dilation_h, 2), "dilation with padding");
  CHECK(refused(&MaxPoolShape::kernel_h, 7), "a window beyond the input");
  const MaxPoolShape larger = {1, 4, 4, 1, 5, 5, 3, 3, 0, 0, 1, 1, true};
  CHECK(check_max_pool(larger).is_ok() && larger.out_height() == 1, "a window that ends less than a stride behind it");
}

}  // namespace
}  // namespace stompp
