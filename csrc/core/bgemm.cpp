#include "core/bgemm.h"

#include "core/blocks.h"
#include "core/dispatch.h"

namespace stompp {
namespace {

struct MatrixRows {
  const uint8_t* a;
  int64_t row_bytes, k_bytes;

  int64_t block_bytes() const { return 0; }
  RowBlock gather(int64_t first, int64_t count, int64_t, uint8_t*, ValidTaps*) const {
    return {a + first * row_bytes, row_bytes, count, k_bytes};
  }
  bool zero_padding() const { return false; }
};

}  // namespace

Status bgemm(const uint32_t* a, int64_t M, const PackedWeight& weight, const Epilogue& epilogue, const Parallel& pool) {
  const Implementation* implementation = active_implementation();
  if (implementation == nullptr) return Status::error("STOMPP_CPU names no implementation that can run here");
  if (weight.shape.taps() != 1 || weight.shape.groups != 1)
    return Status::error("bgemm needs a weight packed from a matrix");
  std::unique_ptr<uint8_t[]> storage;
  PackedWeight readable;
  const Status status = in_layout_of(*implementation, weight, &storage, &readable, pool);
  if (!status.is_ok()) return status;
  const MatrixRows rows = {reinterpret_cast<const uint8_t*>(a), words_for(weight.shape.in_channels) * kWordBytes,
                           readable.layout.tap_bytes(weight.shape)};
  return multiply(*implementation, rows, M, readable, epilogue, pool);
}

}  // namespace stompp
