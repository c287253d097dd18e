#include "core/signs/pack.h"

#include "core/base/bits.h"
#include "core/signs/kernels.h"

namespace stompp {
namespace {

int64_t rows_per_task(int64_t K) { return 32768 / (K + 1) + 1; }

}  // namespace

Status pack_signs(const void* x, FloatType type, int64_t rows, int64_t K, const Limits& limits, uint32_t* words,
                  const Parallel& pool) {
  const PackKernels* kernels = active_pack_kernels();
  if (kernels == nullptr) return no_implementation();
  if (type == FloatType::kFloat64) return Status::error("pack_signs takes float32, float16 or bfloat16");
  const char* bytes = static_cast<const char*>(x);
  parallel_for(pool, rows, rows_per_task(K), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const char* row = bytes + r * K * size_of(type);
      uint32_t* out = words + r * words_for(K);
      limits.low == nullptr ? kernels->pack_row(row, type, K, out) : kernels->pack_outside(row, type, limits, K, out);
    }
  });
  return Status::ok();
}

Status pack_signs_planes(const void* x, FloatType type, int64_t images, int64_t image_stride, int64_t pixels, int64_t K,
                         int64_t stride, const Limits& limits, uint32_t* words, const Parallel& pool) {
  const PackKernels* kernels = active_pack_kernels();
  if (kernels == nullptr) return no_implementation();
  if (type == FloatType::kFloat64) return Status::error("pack_signs takes float32, float16 or bfloat16");
  const int64_t blocks = ceil_div(pixels, kPlanePixels);
  parallel_for(pool, images * blocks, rows_per_task(K) / kPlanePixels + 1, [&](int64_t begin, int64_t end) {
    while (begin < end) {  // one image at a time
      const int64_t image = begin / blocks, first = begin % blocks;
      const int64_t last = end - begin < blocks - first ? first + (end - begin) : blocks;
      const Planes planes = {static_cast<const char*>(x) + image * image_stride * size_of(type),
                             type,
                             K,
                             stride,
                             limits,
                             words + image * pixels * words_for(K)};
      const int64_t stop = last * kPlanePixels < pixels ? last * kPlanePixels : pixels;
      kernels->pack_planes(planes, first * kPlanePixels, stop);
      begin += last - first;
    }
  });
  return Status::ok();
}

Status unpack_signs(const uint32_t* words, int64_t rows, int64_t K, void* out, FloatType type, const Parallel& pool) {
  const PackKernels* kernels = active_pack_kernels();
  if (kernels == nullptr) return no_implementation();
  char* bytes = static_cast<char*>(out);
  parallel_for(pool, rows, rows_per_task(K), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      kernels->unpack_row(words + r * words_for(K), type, K, bytes + r * K * size_of(type));
  });
  return Status::ok();
}

}  // namespace stompp
