// The kernels of bf16_block.h but for the products, written once for every instruction set: see base/target.h. It
// stands behind float_tile_body.h, whose Lanes and TileSums it uses. Its loops are such that compilers vectorize them.

STOMPP_TARGET void round_floats(const float* x, int64_t count, uint16_t* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = float_to_bfloat16(x[i]);
  for (int64_t i = count; i < round_up(count, kBf16Step); ++i) out[i] = 0;
}

STOMPP_TARGET void expand_words(const uint32_t* words, int64_t count, uint16_t* out) {
  for (int64_t w = 0; w < count; ++w, out += kWordBits) {
    constexpr uint32_t kOne = 0x3f80;
    const uint32_t word = words[w];
    for (uint32_t i = 0; i < kWordBits; ++i) out[i] = static_cast<uint16_t>(kOne | (word >> i & 1u) << 15);
  }
}

STOMPP_TARGET_INLINE void copy_step(const uint16_t* from, uint16_t* to) {
  std::memcpy(to, from, kBf16Step * sizeof(uint16_t));
}

STOMPP_TARGET void gather_rows(const Bf16Rows& rows) {
  const int64_t runs = rows.run_count, elements = rows.run_elements;
  for (int64_t pixel = 0; pixel < rows.pixels; ++pixel) {
    const int64_t at = pixel * rows.step;
    uint16_t* out = rows.out + pixel * rows.stride;
    if (elements <= kBf16Step)  // as the lines of a first layer's kernel
      for (int64_t run = 0; run < runs; ++run, out += elements) copy_step(rows.runs[run] + at, out);
    else
      for (int64_t run = 0; run < runs; ++run, out += elements)
        for (int64_t i = 0; i < elements; i += kBf16Step) copy_step(rows.runs[run] + at + i, out + i);
    std::memset(out, 0, kBf16Step * sizeof(uint16_t));
  }
}

// Sums from memory go through registers, as those of a tile of one pixel.
template <class Out>
STOMPP_TARGET_INLINE void write_row(const float* sums, const Out& out) {
  TileSums<1> row;
  row.begin(sums);
  row.write(out);
}

STOMPP_TARGET void finish_rows(const float* sums, int64_t rows, const FloatTileOut& out) {
  FloatTileOut row = out;
  for (int64_t r = 0; r < rows; ++r, row.out += out.stride) write_row(sums + r * kPanelOutputs, row);
}

STOMPP_TARGET void compare_rows_with_limits(const float* sums, int64_t rows, const FloatTileBits& out) {
  FloatTileBits row = out;
  for (int64_t r = 0; r < rows; ++r, row.words += out.stride) write_row(sums + r * kPanelOutputs, row);
}

constexpr Bf16Kernels bf16_kernels() {
  Bf16Kernels kernels = {};
  kernels.round = round_floats;
  kernels.expand = expand_words;
  kernels.gather = gather_rows;
  kernels.finish = finish_rows;
  kernels.compare = compare_rows_with_limits;
  return kernels;
}
