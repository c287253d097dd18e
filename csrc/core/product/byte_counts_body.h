// Products by XOR and a popcount of bytes, written once for the instruction sets that have one of 16 bytes: see
// base/target.h. Weights lie as bytes [k][32 outputs]: two vectors hold 8 products of 32 outputs, and a row's byte is
// broadcast against them. That is 3 instructions per 128 products.
//
// Wants `struct Bytes`, operations on a vector of 16 bytes:
//
//   Vector                         the vector's type
//   zero(), load(p), repeat(p)     all 0, 16 bytes from p on, the byte at p 16 times
//   add_differing(counts, a, b)    counts plus, in each byte, the number of bits that differ in a and b
//   subtract_twice(counts, dots)   subtracts twice each of the 16 counts from int32 numbers

constexpr int kTileRows = 4;
constexpr int kVectors = static_cast<int>(kPanelOutputs) / 16;

// A byte adds at most 8 to a count: 31 * 8 = 248 fits 8 bits.
constexpr int64_t kChunkBytes = 31;
static_assert(kChunkBytes * 8 <= 255, "counts must not wrap");

template <int kRows>
STOMPP_TARGET void multiply_tile(const uint8_t* const* rows, const uint8_t* panel, int64_t k_bytes, int64_t r,
                                 int64_t p, const DotsOut& out) {
  int32_t* dots = out.dots + r * out.stride + p * kPanelOutputs;
  for (int i = 0; i < kRows; ++i)
    std::memcpy(dots + i * out.stride, out.starts[r + i] + p * kPanelOutputs, kPanelOutputs * sizeof(int32_t));
  for (int64_t k = 0; k < k_bytes;) {
    const int64_t end = k_bytes - k < kChunkBytes ? k_bytes : k + kChunkBytes;
    Bytes::Vector counts[kRows][kVectors];
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) counts[i][v] = Bytes::zero();
    for (; k < end; ++k, panel += kPanelOutputs) {
      const Bytes::Vector w[kVectors] = {Bytes::load(panel), Bytes::load(panel + 16)};
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        const Bytes::Vector a = Bytes::repeat(rows[r + i] + k);
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) counts[i][v] = Bytes::add_differing(counts[i][v], a, w[v]);
      }
    }
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i)
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) Bytes::subtract_twice(counts[i][v], dots + i * out.stride + 16 * v);
  }
}

STOMPP_TARGET void multiply_block(const ProductBlock& block, const DotsOut& out) {
  const uint8_t* const* rows = whole_rows(block.scratch);
  const int64_t count = block.rows.row_count, k_bytes = block.rows.k_bytes;
  for (int64_t p = 0; p < block.panel_count; ++p) {
    const uint8_t* panel = block.panels + p * k_bytes * kPanelOutputs;
    int64_t r = 0;
    for (; r + kTileRows <= count; r += kTileRows) multiply_tile<kTileRows>(rows, panel, k_bytes, r, p, out);
    for (; r < count; ++r) multiply_tile<1>(rows, panel, k_bytes, r, p, out);
  }
}

// Without what epilogues need.
constexpr ProductKernels byte_count_kernels() {
  ProductKernels kernels = {};
  kernels.layout = {LayoutId::kBytes, 1};
  kernels.blocks.scratch_bytes = whole_rows_bytes;
  kernels.blocks.prepare_rows = prepare_whole_rows;
  kernels.blocks.multiply = multiply_block;
  return kernels;
}
