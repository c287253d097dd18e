// AMX without AMX: tiles as arrays, and implementations whose products run on them.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "check.h"
#include "core/base/float_types.h"
#include "core/isa/amx/expand.h"
#include "core/isa/amx/tiles.h"
#include "core/isa/implementation.h"

namespace stompp::test {

// Checks what the processor would refuse, and poisons what the instructions leave undefined or must not be read.
class EmulatedTiles {
 public:
  static void configure(const amx::TileShapes& shapes) {
    State& now = state();
    now.shapes = shapes;
    CHECK(shapes.palette == 1, "palette 1");
    for (int tile = 0; tile < 16; ++tile) {
      const bool in_limits = shapes.rows[tile] <= amx::kTileRows && shapes.row_bytes[tile] <= amx::kTileRowBytes;
      CHECK(in_limits && (tile < amx::kTiles || shapes.rows[tile] == 0), "a tile's shape");
    }
    std::memset(now.bytes, 0, sizeof(now.bytes));
  }
  static void release() { state() = State(); }

  template <int kTile>
  static void zero() {
    fill(kTile, 0);
  }
  template <int kTile>
  static void load(const void* from, int64_t stride) {
    fill(kTile, 0);
    for (int64_t r = 0; r < rows(kTile); ++r)
      std::memcpy(row(kTile, r), static_cast<const uint8_t*>(from) + r * stride, row_bytes(kTile));
  }
  template <int kTile>
  static void load_once(const void* from, int64_t stride) {
    load<kTile>(from, stride);
  }
  template <int kTile>
  static void store(void* to, int64_t stride) {
    check_configured(kTile);
    for (int64_t r = 0; r < rows(kTile); ++r)
      std::memcpy(static_cast<uint8_t*>(to) + r * stride, row(kTile, r), row_bytes(kTile));
  }
  template <int kSum, int kA, int kB>
  static void add_products() {
    for (int tile : {kSum, kA, kB}) check_configured(tile);
    const int64_t columns = row_bytes(kSum) / 4, depth = row_bytes(kA) / 4;
    CHECK(rows(kA) == rows(kSum) && rows(kB) == depth && row_bytes(kB) == row_bytes(kSum), "shapes that fit");
    for (int64_t m = 0; m < rows(kSum); ++m) {
      int32_t sums[amx::kTileRowBytes / 4];
      std::memcpy(sums, row(kSum, m), row_bytes(kSum));
      for (int64_t k = 0; k < depth; ++k) {
        const uint8_t *a = row(kA, m) + 4 * k, *b = row(kB, k);
        for (int64_t i = 0; i < 4 * columns; ++i)
          sums[i / 4] += static_cast<int8_t>(a[i % 4]) * static_cast<int8_t>(b[i]);
      }
      std::memcpy(row(kSum, m), sums, row_bytes(kSum));
    }
  }
  // Even and odd products are added up apart, each by fused multiply-adds, and then both to the sum.
  template <int kSum, int kA, int kB>
  static void add_bf16_products() {
    for (int tile : {kSum, kA, kB}) check_configured(tile);
    const int64_t columns = row_bytes(kSum) / 4, depth = row_bytes(kA) / 4;
    CHECK(rows(kA) == rows(kSum) && rows(kB) == depth && row_bytes(kB) == row_bytes(kSum), "shapes that fit");
    for (int64_t m = 0; m < rows(kSum); ++m)
      for (int64_t n = 0; n < columns; ++n) {
        float halves[2] = {};
        for (int64_t k = 0; k < depth; ++k)
          for (int64_t i = 0; i < 2; ++i)
            halves[i] =
                std::fma(BFloat16::load(row(kA, m), 2 * k + i), BFloat16::load(row(kB, k), 2 * n + i), halves[i]);
        Float32::store(row(kSum, m), n, Float32::load(row(kSum, m), n) + (halves[0] + halves[1]));
      }
  }

 private:
  static constexpr uint8_t kPoison = 0xa5;

  struct State {
    amx::TileShapes shapes;
    uint8_t bytes[amx::kTiles][amx::kTileBytes];
  };
  static State& state() {
    thread_local State now;
    return now;
  }
  static int64_t rows(int tile) { return state().shapes.rows[tile]; }
  static size_t row_bytes(int tile) { return state().shapes.row_bytes[tile]; }
  static uint8_t* row(int tile, int64_t r) { return state().bytes[tile] + r * amx::kTileRowBytes; }
  static void check_configured(int tile) { CHECK(rows(tile) > 0, "an instruction on a tile without a shape"); }
  static void fill(int tile, uint8_t value) {
    check_configured(tile);
    std::memset(row(tile, 0), kPoison, amx::kTileBytes);
    for (int64_t r = 0; r < rows(tile); ++r) std::memset(row(tile, r), value, row_bytes(tile));
  }
};

// As core/isa/amx/expand.h says.
struct EmulatedExpansion {
  static void row(const amx::BitRuns& bits, int64_t steps, int8_t* out) {
    for (int64_t i = 0; i < steps; ++i) {
      const int64_t byte = bits.offset + i * amx::kStepBytes;
      part_of_row(bits.runs[byte / bits.run_bytes] + byte % bits.run_bytes, 0xff, out + i * amx::kTileStep);
    }
  }
  static void pixels(const uint8_t* bits, int64_t pixel_bytes, int64_t count, int64_t steps, int8_t* out) {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t step = 0; step < steps; ++step, out += amx::kTileRowBytes)
        part_of_row(bits + i * pixel_bytes + step * amx::kStepBytes, 0xff, out);
  }
  static void part_of_row(const uint8_t* bits, uint8_t valid, int8_t* out) {
    for (int q = 0; q < 8; ++q)
      for (int b = 0; b < 8; ++b) out[8 * q + b] = (valid >> b & 1) != 0 ? value(bits[b], q) : int8_t{0};
  }
  static void weights(const uint8_t* bits, bool half, int8_t* out) {
    for (int tile = 0; tile < (half ? 1 : 2); ++tile, bits += 128, out += amx::kTileBytes)
      for (int r = 0; r < 16; ++r)
        for (int n = 0; n < 16; ++n)
          for (int i = 0; i < 4; ++i) out[64 * r + 4 * n + i] = value(bits[8 * n + 4 * (r % 2) + i], r / 2);
  }
  static void to_bits(const amx::SumsToBits& rows) {
    for (int64_t r = 0; r < rows.rows; ++r) {
      uint32_t bits = rows.flip;
      for (int64_t n = 0; n < kPanelOutputs; ++n) {
        const bool second = rows.residual != nullptr && (rows.residual[r * rows.stride] >> n & 1) != 0;
        const int32_t threshold = (second ? rows.second_thresholds : rows.thresholds)[n];
        bits ^= static_cast<uint32_t>(rows.sums[r * kPanelOutputs + n] < threshold) << n;
      }
      rows.out[r * rows.stride] = bits;
    }
  }

 private:
  static int8_t value(uint8_t byte, int bit) { return (byte >> bit & 1) != 0 ? int8_t{-1} : int8_t{1}; }
};

// AMX for products of any size, where it is there; and emulated, with limits that let small convolutions load from
// images, and with some so small that K is cut too.
const std::vector<const Implementation*>& tile_implementations();

}  // namespace stompp::test
