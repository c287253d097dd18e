// Rows of bits, read where they lie.
#pragma once

#include <cstdint>
#include <cstring>

namespace stompp {

// Rows that share one pass over some panels. On AVX2 this and kBlockPanels keep what a chunk of K needs, 29 KB, in an
// L1 of 32 KB: 14 KB of 16-bit sums, 7.5 KB of weight nibbles, 4 KB of tables and 3.3 KB of offsets.
constexpr int64_t kBlockRows = 56;

// Rows, one after the other, of which the same runs count: those outside [run_begin, run_end) are padding.
struct CountedRuns {
  int64_t rows, run_begin, run_end;
};

// Row r is run_count runs of run_bytes each, one after the other, and then zeros up to k_bytes.
struct RowBlock {
  const uint8_t* const* runs;  // [row_count][run_count]
  int64_t run_count, run_bytes;
  int64_t row_count;  // 1 .. kBlockRows
  int64_t k_bytes;    // the layout's row_bytes: at least run_count * run_bytes, a multiple of the layout's k_bytes
  const CountedRuns* counted = nullptr;  // of all rows, for kernels with skipped_run_bytes; null: all runs count

  // Says whether a row is one run of k_bytes, which a kernel can read in place.
  bool whole() const { return run_count == 1 && run_bytes == k_bytes; }
};

namespace detail {

template <int64_t kPiece>
inline void copy_pieces(uint8_t* to, const uint8_t* from, int64_t count) {
  std::memcpy(to, from, kPiece);
  for (int64_t i = kPiece; i < count - kPiece; i += kPiece) std::memcpy(to + i, from + i, kPiece);
  std::memcpy(to + count - kPiece, from + count - kPiece, kPiece);
}

}  // namespace detail

// Copies a few bytes without a call, in pieces of which the last may overlap the one before.
inline void copy_bytes(uint8_t* to, const uint8_t* from, int64_t count) {
  if (count >= 16) return detail::copy_pieces<16>(to, from, count);
  if (count >= 4) return detail::copy_pieces<4>(to, from, count);
  if (count >= 2) return detail::copy_pieces<2>(to, from, count);
  *to = *from;
}

// Copies the k_bytes of row r.
inline void copy_row(const RowBlock& rows, int64_t r, uint8_t* out) {
  const uint8_t* const* runs = rows.runs + r * rows.run_count;
  const int64_t tail = rows.k_bytes - rows.run_count * rows.run_bytes;
  for (int64_t i = 0; i < rows.run_count; ++i) copy_bytes(out + i * rows.run_bytes, runs[i], rows.run_bytes);
  if (tail > 0) std::memset(out + rows.k_bytes - tail, 0, static_cast<size_t>(tail));
}

// Kernels that read whole rows use these for scratch_bytes and prepare_rows. Their scratch memory is kBlockRows
// pointers, then copies of rows that are not one run.
inline int64_t whole_rows_bytes(int64_t k_bytes) {
  return kBlockRows * (static_cast<int64_t>(sizeof(const uint8_t*)) + k_bytes);
}

inline const uint8_t* const* whole_rows(const void* scratch) { return static_cast<const uint8_t* const*>(scratch); }

inline void prepare_whole_rows(const RowBlock& rows, void* scratch) {
  const uint8_t** pointers = static_cast<const uint8_t**>(scratch);
  uint8_t* copy = reinterpret_cast<uint8_t*>(pointers + kBlockRows);
  for (int64_t r = 0; r < rows.row_count; ++r, copy += rows.k_bytes) {
    pointers[r] = rows.whole() ? rows.runs[r] : copy;
    if (!rows.whole()) copy_row(rows, r, copy);
  }
}

}  // namespace stompp
