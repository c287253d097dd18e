#include "core/masks/refresh_mask.h"

#include "core/base/bits.h"
#include "core/masks/kernels.h"

namespace stompp {

Status make_refresh(int64_t n, double p, double r, uint64_t seed, uint32_t tensor_id, uint64_t step,
                    RefreshMask* refresh) {
  if (n < 0 || n > (int64_t{1} << 34)) return Status::error("refresh_mask_: n must be 0 to 2^34");
  if (!(p >= 0.0 && p <= 1.0)) return Status::error("refresh_mask_: p must be in [0, 1]");
  if (!(r >= 1.0)) return Status::error("refresh_mask_: r must be at least 1");
  const double redraw = 4294967296.0 / r;
  *refresh = {n, static_cast<uint64_t>(p * redraw), static_cast<uint64_t>(redraw), {seed, tensor_id, step}};
  return Status::ok();
}

Status refresh_mask(const RefreshMask& refresh, uint32_t* words, const Parallel& pool) {
  const MaskKernels* kernels = active_mask_kernels();
  if (kernels == nullptr) return no_implementation();
  parallel_for(pool, words_for(refresh.n), 512,
               [&](int64_t begin, int64_t end) { kernels->refresh_words(refresh, words, begin, end); });
  return Status::ok();
}

}  // namespace stompp
