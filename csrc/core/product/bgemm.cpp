#include "core/product/bgemm.h"

#include "core/product/blocks.h"

namespace stompp {
namespace {

struct MatrixRows {
  const uint8_t* a;
  int64_t row_bytes, read_bytes;

  int64_t runs_per_row() const { return 1; }
  int64_t run_bytes() const { return read_bytes; }
  BitImage image() const { return {}; }
  int64_t memory_bytes() const { return 0; }
  int64_t gather(int64_t first, int64_t count, int64_t, const uint8_t** runs, uint8_t*, TapSpan* spans) const {
    for (int64_t r = 0; r < count; ++r) runs[r] = a + (first + r) * row_bytes;
    spans[0] = {count, {0, 1, 0, 1}};
    return 1;
  }
};

}  // namespace

Status bgemm(const uint32_t* a, int64_t M, const PackedWeight& weight, const Epilogue& epilogue, const Parallel& pool) {
  const ProductKernels* kernels = active_product_kernels();
  if (kernels == nullptr) return no_implementation();
  if (weight.shape.taps() != 1 || weight.shape.groups != 1)
    return Status::error("bgemm needs a weight packed from a matrix");
  std::unique_ptr<uint8_t[]> storage;
  PackedWeight readable;
  const Status status = in_layout(kernels->layout, weight, &storage, &readable, pool);
  if (!status.is_ok()) return status;
  const int64_t row_bytes = words_for(weight.shape.in_channels) * kWordBytes;
  const int64_t k_bytes = readable.layout.row_bytes(weight.shape);
  const MatrixRows rows = {reinterpret_cast<const uint8_t*>(a), row_bytes, row_bytes < k_bytes ? row_bytes : k_bytes};
  return multiply(*kernels, rows, M, readable, epilogue, pool);
}

}  // namespace stompp
