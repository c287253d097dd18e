#include "core/bgemm.h"

#include "core/dispatch.h"
#include "core/tiles.h"

namespace stompp {
namespace {

struct MatrixRows {
  const uint8_t* a;
  int64_t row_bytes;

  void gather(int64_t m, const uint8_t** pointers, int64_t) const { pointers[0] = a + m * row_bytes; }
  const uint8_t* zero_row() const { return nullptr; }
  int64_t group_row_bytes() const { return 0; }
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
  const MatrixRows rows = {reinterpret_cast<const uint8_t*>(a), words_for(weight.shape.in_channels) * kWordBytes};
  return multiply(*implementation, rows, M, readable, epilogue, pool);
}

}  // namespace stompp
