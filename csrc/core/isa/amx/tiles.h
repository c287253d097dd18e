// The instructions of AMX that the kernels use, and the steps of a product made of them. tests/core emulates the former
// in a class of the same functions.
#pragma once

#include <cstdint>

namespace stompp {
namespace amx {

constexpr int64_t kTileRows = 16;      // most rows of a tile
constexpr int64_t kTileRowBytes = 64;  // 64 products, or 16 sums
constexpr int64_t kTileBytes = kTileRows * kTileRowBytes;
constexpr int64_t kTileStep = 2 * kTileBytes;  // of two tiles of rows, or of a panel of weights
constexpr int kSumTiles = 4, kTiles = 8;

// What LDTILECFG reads: palette 1 has 8 tiles of up to 16 rows of up to 64 bytes.
struct TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};
static_assert(sizeof(TileShapes) == 64, "as the instruction reads it");

#if defined(__x86_64__)

// Inline assembly: it needs no target attribute, so that tiles and code for other instruction sets mix in any function.
// Tiles are numbered by constants, in the instruction.
struct ProcessorTiles {
  static void configure(const TileShapes& shapes) { __asm__ volatile("ldtilecfg %0" ::"m"(shapes)); }
  static void release() { __asm__ volatile("tilerelease"); }

  template <int kTile>
  static void zero() {
    __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
  }
  // The clobber keeps the compiler from moving stores of what is loaded, or loads of what is stored, across.
  template <int kTile>
  static void load(const void* from, int64_t stride) {
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  // The same of what is read once and then not for long: it takes less of the first cache from what stays there.
  template <int kTile>
  static void load_once(const void* from, int64_t stride) {
    __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
  }
  template <int kTile>
  static void store(void* to, int64_t stride) {
    __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
  }
  // Sums of the products of signed bytes: sum[m][n] += a[m][4 k + i] * b[k][4 n + i] for all k and i < 4.
  template <int kSum, int kA, int kB>
  static void add_products() {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
  }
  // Sums in float32 of the products of bfloat16: sum[m][n] += a[m][2 k + i] * b[k][2 n + i] for all k and i < 2.
  template <int kSum, int kA, int kB>
  static void add_bf16_products() {
    __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSum), "i"(kA), "i"(kB));
  }
};

#endif

// What is loaded as two tiles of rows.
struct TilesOfRows {
  const int8_t *first, *second;
  int64_t stride;  // bytes from a row to the next
};

// A block of 2 x 2 tiles of sums: two tiles of rows and a panel's 32 outputs, or the first 16 of them. Sums are tiles 0
// to 3, row by row. In memory the tiles of a step of 64 products, the first and the second, follow each other.
template <class Tiles>
struct TileBlock {
  static TileShapes shapes(int64_t rows) {
    TileShapes result;
    for (int tile = 0; tile < kTiles; ++tile) {
      result.row_bytes[tile] = static_cast<uint16_t>(kTileRowBytes);
      const bool of_weights = tile >= kSumTiles + 2;
      result.rows[tile] = static_cast<uint8_t>(of_weights ? kTileRows : rows);
    }
    return result;
  }

  static void zero() {
    Tiles::template zero<0>();
    Tiles::template zero<1>();
    Tiles::template zero<2>();
    Tiles::template zero<3>();
  }

  // Sums kept between parts of K, one tile after the other.
  static void load(const int32_t* sums) {
    const uint8_t* from = reinterpret_cast<const uint8_t*>(sums);
    Tiles::template load<0>(from, kTileRowBytes);
    Tiles::template load<1>(from + kTileBytes, kTileRowBytes);
    Tiles::template load<2>(from + 2 * kTileBytes, kTileRowBytes);
    Tiles::template load<3>(from + 3 * kTileBytes, kTileRowBytes);
  }
  static void keep(int32_t* sums) {
    uint8_t* to = reinterpret_cast<uint8_t*>(sums);
    Tiles::template store<0>(to, kTileRowBytes);
    Tiles::template store<1>(to + kTileBytes, kTileRowBytes);
    Tiles::template store<2>(to + 2 * kTileBytes, kTileRowBytes);
    Tiles::template store<3>(to + 3 * kTileBytes, kTileRowBytes);
  }

  // 64 products of each sum. A tile is loaded right before its first product: the next one's load runs beside it.
  static void step(const TilesOfRows& rows, const int8_t* weights) {
    Tiles::template load<4>(rows.first, rows.stride);
    Tiles::template load_once<6>(weights, kTileRowBytes);
    Tiles::template add_products<0, 4, 6>();
    Tiles::template load_once<7>(weights + kTileBytes, kTileRowBytes);
    Tiles::template add_products<1, 4, 7>();
    Tiles::template load<5>(rows.second, rows.stride);
    Tiles::template add_products<2, 5, 6>();
    Tiles::template add_products<3, 5, 7>();
  }
  static void half_step(const TilesOfRows& rows, const int8_t* weights) {
    Tiles::template load<4>(rows.first, rows.stride);
    Tiles::template load_once<6>(weights, kTileRowBytes);
    Tiles::template add_products<0, 4, 6>();
    Tiles::template load<5>(rows.second, rows.stride);
    Tiles::template add_products<2, 5, 6>();
  }

  // Rows of 32 sums, or of 16, `stride` sums from one to the next: those of both tiles.
  static void store(bool half, int32_t* first, int32_t* second, int64_t stride) {
    const int64_t bytes = stride * static_cast<int64_t>(sizeof(int32_t));
    Tiles::template store<0>(first, bytes);
    Tiles::template store<2>(second, bytes);
    if (half) return;
    constexpr int64_t kSums = kTileRowBytes / static_cast<int64_t>(sizeof(int32_t));
    Tiles::template store<1>(first + kSums, bytes);
    Tiles::template store<3>(second + kSums, bytes);
  }
};

}  // namespace amx
}  // namespace stompp
