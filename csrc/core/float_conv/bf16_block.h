// Products of floats by instructions that multiply bfloat16 and add up in float32.
//
// Inputs are rounded to bfloat16; signs are exact. A weight is one bfloat16, or the sum of two, which is 2^-17 of it
// off at most: the second part is worth its time where inputs are exact.
#pragma once

#include <cstdint>

#include "core/float_conv/float_tile.h"
#include "core/product/packed_weight.h"

namespace stompp {

constexpr int64_t kBf16Step = 32;       // inputs of a step of K
constexpr int64_t kBf16BlockRows = 32;  // at most, of a block
constexpr int64_t kBf16Pairs = kBf16Step / 2;
// bfloat16 of one part of a step's weights, [kBf16Pairs][32 outputs][2].
constexpr int64_t kBf16PartWeights = kBf16Step * kPanelOutputs;

// Rows of inputs times a panel of 32 outputs' weights. There is memory for kBf16BlockRows rows and sums, or for half of
// them where that is enough for `rows`.
struct Bf16Block {
  const uint16_t* x;  // [rows][stride], `steps` steps of each
  int64_t stride, rows, steps, parts;
  const uint16_t* weights;  // [steps][parts][kBf16PartWeights]
  float* sums;              // [rows][sums_stride], 32 of each
  int64_t sums_stride;

  bool is_half() const { return rows <= kBf16BlockRows / 2; }
};

// Pixels beside each other whose inputs are brought into rows. Reads and writes up to kBf16Step elements more.
struct Bf16Rows {
  const uint16_t* const* runs;  // what the first pixel reads, [run_count][run_elements]
  int64_t run_count, run_elements;
  int64_t step;  // elements from what a pixel reads to what the next one does
  int64_t pixels;
  uint16_t* out;  // [pixels][stride], each run_count * run_elements and then zeros up to a step
  int64_t stride;
};

struct Bf16Kernels {
  // Null where the instruction set has no products of bfloat16, or the processor lacks them.
  void (*multiply)(const Bf16Block& block);
  // Called by a thread before its first block and behind its last, or null.
  void (*begin)();
  void (*end)();

  void (*round)(const float* x, int64_t count, uint16_t* out);          // and zeros up to a step
  void (*expand)(const uint32_t* words, int64_t count, uint16_t* out);  // +1 and -1, 32 for each word
  void (*gather)(const Bf16Rows& rows);
  // What follows the sums of rows, [rows][32].
  void (*finish)(const float* sums, int64_t rows, const FloatTileOut& out);
  void (*compare)(const float* sums, int64_t rows, const FloatTileBits& out);
};

}  // namespace stompp
