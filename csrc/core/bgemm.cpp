#include "core/bgemm.h"

#include <cstring>

#include "core/blocks.h"
#include "core/dispatch.h"

namespace stompp {
namespace {

struct MatrixRows {
  const uint8_t* a;
  int64_t row_bytes, k_bytes;

  bool copies() const { return k_bytes > row_bytes; }  // the layout reads zeros past the rows' last words
  int64_t block_bytes() const { return copies() ? kBlockRows * k_bytes : 0; }

  RowBlock gather(int64_t first, int64_t count, int64_t, uint8_t* memory, ValidTaps*) const {
    const uint8_t* rows = a + first * row_bytes;
    if (!copies()) return {rows, row_bytes, count, k_bytes};
    for (int64_t r = 0; r < count; ++r) {
      std::memcpy(memory + r * k_bytes, rows + r * row_bytes, static_cast<size_t>(row_bytes));
      std::memset(memory + r * k_bytes + row_bytes, 0, static_cast<size_t>(k_bytes - row_bytes));
    }
    return {memory, k_bytes, count, k_bytes};
  }
  bool zero_padding() const { return false; }
};

}  // namespace

Status bgemm(const uint32_t* a, int64_t M, const PackedWeight& weight, const Epilogue& epilogue, const Parallel& pool) {
  const Implementation* implementation = active_implementation();
  if (implementation == nullptr) return no_implementation();
  if (weight.shape.taps() != 1 || weight.shape.groups != 1)
    return Status::error("bgemm needs a weight packed from a matrix");
  std::unique_ptr<uint8_t[]> storage;
  PackedWeight readable;
  const Status status = in_layout_of(*implementation, weight, &storage, &readable, pool);
  if (!status.is_ok()) return status;
  const MatrixRows rows = {reinterpret_cast<const uint8_t*>(a), words_for(weight.shape.in_channels) * kWordBytes,
                           readable.layout.row_bytes(weight.shape)};
  return multiply(*implementation, rows, M, readable, epilogue, pool);
}

}  // namespace stompp
