// Accumulators of a tile to what its epilogue writes.
//
// Lane 4 g + t of a warp has, of each word of 32 outputs, outputs 4 t to 4 t + 3 and 16 + 4 t to 16 + 4 t + 3 of rows g
// and g + 8 of a row tile: weight_layout.h orders the panels so. A lane's eight outputs of a word and a row are a
// piece; piece q is of rows 8 (q / kWords) + g of the warp and of its word q % kWords. Bits are compared as they lie
// there, eight to a byte, and the four lanes of a quad exchange bytes until each has whole words. Integers and floats
// leave in runs of four; their loop goes over copies in shared memory, as registers have no index.
#pragma once

#include "cuda/product/epilogue.cuh"

namespace stompp::cuda {

// The eight accumulators of piece q.
template <int kRowTiles, int kOutputTiles>
__device__ inline int& piece_value(int (&c)[kRowTiles][kOutputTiles][4], int q, int v) {
  constexpr int kWords = kOutputTiles / 4;
  return c[q / kWords / 2][q % kWords * 4 + v / 2][q / kWords % 2 * 2 + v % 2];
}

// Four bytes a lane, byte k of lane s going to byte s of lane k of a quad.
__device__ inline uint32_t transpose_bytes(uint32_t bytes, int lane) {
  const uint32_t beside = shuffle_xor(bytes, 1);
  bytes = permute_bytes(bytes, beside, lane % 2 == 0 ? 0x6240 : 0x3715);
  const uint32_t across = shuffle_xor(bytes, 2);
  return permute_bytes(bytes, across, lane % 4 < 2 ? 0x5410 : 0x3276);
}

// Low halves of the bytes to the low half of the word, high halves to the high one.
__device__ inline uint32_t part_nibbles(uint32_t word) {
  const uint32_t differ = (word ^ word >> 4) & 0x00F000F0u;
  word ^= differ ^ differ << 4;
  return permute_bytes(word, 0, 0x3120);
}

template <class Mma, class T>
struct TileEpilogue {
  static constexpr int kWords = T::kOutputTiles / 4;               // of a warp's outputs
  static constexpr int kPieces = T::kRowTiles * 2 * kWords;        // of a lane
  static constexpr int kFinishers = 32 * T::kWarpsM * T::kWarpsN;  // threads

  // In shared memory: a number for each output, several of them, the flips of the words, and the taps of the rows.
  enum Column {
    kBase,
    kBaseBesideMinus,
    kScale = kBaseBesideMinus,
    kBias,
    kResidualScale,
    kResidualBias,
    kBefore,
    kSlope,
    kAfter,
    kColumns
  };
  static constexpr int kColumnWords = kColumns * T::kOutputs, kFlipWords = T::kOutputs / kWordBits;
  static constexpr int kTableWords = round_up(kColumnWords + kFlipWords + T::kRows, kChunkWords);

  // As many pieces a round as there is room for.
  static constexpr int pieces_a_round() {
    int pieces = kPieces;
    while (pieces * 8 * kFinishers > T::kRingWords - kTableWords) pieces /= 2;
    return pieces;
  }
  static constexpr int kRoundPieces = pieces_a_round();
  static_assert(kPieces % 4 == 0 && kRoundPieces > 0 && kPieces % kRoundPieces == 0, "whole words and rounds");

  const Product& p;
  int* table;
  const int* ones;  // of each row of the tile
  int group, first_row, first_output, thread, lane, warp_row, warp_output;

  // warp_m, warp_n: where this warp is in the tile.
  __device__ TileEpilogue(const Product& product, uint32_t* ring, const int* row_ones, int warp_m, int warp_n)
      : p(product),
        table(reinterpret_cast<int*>(ring)),
        ones(row_ones),
        group(static_cast<int>(blockIdx.z)),
        first_row(static_cast<int>(blockIdx.x) * T::kRows),
        first_output(static_cast<int>(blockIdx.y) * T::kOutputs),
        thread(static_cast<int>(threadIdx.x)),
        lane(thread % 32),
        warp_row(warp_m * T::kRowTiles * 16),
        warp_output(warp_n * T::kOutputTiles * 8) {}

  __device__ int* column(int index) const { return table + index * T::kOutputs; }
  __device__ uint32_t* flips() const { return reinterpret_cast<uint32_t*>(table + kColumnWords); }
  __device__ uint32_t* taps_inside() const { return flips() + kFlipWords; }  // of each row: y0, y1, x0, x1, a byte each
  __device__ uint32_t all_taps() const { return static_cast<uint32_t>(p.rows.kernel_h << 8 | p.rows.kernel_w << 24); }
  __device__ bool has_borders() const { return !p.rows.is_matrix && p.rows.outside != 0; }

  __device__ int outputs_before() const { return group * p.group_outputs + first_output; }
  // Returns how many outputs exist from output n of the tile on; negative where the tile ends after the last one.
  __device__ int left(int n) const { return p.group_outputs - first_output - n; }

  // By all threads, when the ring is free; a barrier of the block comes before `run`.
  __device__ void prepare() const {
    for (int n = thread; n < T::kOutputs; n += T::kThreads) prepare_output(n);
    if (has_borders())
      for (int row = thread; row < T::kRows; row += T::kThreads) {
        const TapRectangle t = Row::at(p.rows, first_row + row).inside(p.rows);
        taps_inside()[row] = static_cast<uint32_t>(t.y0 | t.y1 << 8 | t.x0 << 16 | t.x1 << 24);
      }
  }

  __device__ void prepare_output(int n) const {
    const Epilogue& e = p.epilogue;
    const bool exists = left(n) > 0;
    const int within = exists ? first_output + n : 0, output = group * p.group_outputs + within;
    const int base = Mma::kAnd ? sum_of_taps(within) : p.K;
    column(kBase)[n] = base;
    if (e.kind == Kind::kThreshold) {
      column(kBase)[n] = base - clamp(e.thresholds[output]);
      if (e.residual_words != nullptr) column(kBaseBesideMinus)[n] = base - clamp(e.thresholds[e.N + output]);
      const uint32_t word = ballot(exists && (e.flip_words[output / kWordBits] >> output % kWordBits & 1) != 0);
      if (lane == 0) flips()[n / kWordBits] = word;
    } else if (e.kind == Kind::kAffine) {
      const AffineColumn affine = AffineColumn::at(e, output);
      const float values[] = {affine.scale,  affine.bias,  affine.residual_scale, affine.residual_bias,
                              affine.before, affine.slope, affine.after};
#pragma unroll
      for (int i = 0; i < kColumns - kScale; ++i) reinterpret_cast<float*>(column(kScale + i))[n] = values[i];
    }
  }

  // Sums lie in [-K, K], and K is below 2^30: no difference from a threshold in [-K, K + 1] overflows.
  __device__ int clamp(int threshold) const {
    return threshold < -p.K ? -p.K : threshold > p.K + 1 ? p.K + 1 : threshold;
  }

  __device__ const int32_t* tap_sums(int output) const { return p.sums + group * p.panels_per_group * kPanel + output; }
  __device__ int sum_of_taps(int output) const {
    return tap_sums(output)[static_cast<int64_t>(p.sum_count - 1) * p.outputs_padded];
  }

  __device__ void run(int (&c)[T::kRowTiles][T::kOutputTiles][4]) const {
    add_rows(c);
    if (has_borders()) take_back_outside(c);
    if (p.epilogue.kind == Kind::kThreshold) {
      if (p.epilogue.residual_words == nullptr)
        write_bits<false>(c);
      else
        write_bits<true>(c);
    } else if (p.epilogue.kind == Kind::kInt32) {
      write_values<Kind::kInt32>(c);
    } else {
      write_values<Kind::kAffine>(c);
    }
  }

  // Makes accumulators dot products, but for what an output adds to all of its own.
  __device__ void add_rows(int (&c)[T::kRowTiles][T::kOutputTiles][4]) const {
#pragma unroll
    for (int q = 0; q < kPieces; ++q) {
      const int row = Mma::kAnd ? 2 * ones[warp_row + q / kWords * 8 + lane / 4] : 0;
#pragma unroll
      for (int v = 0; v < 8; ++v) {
        int& value = piece_value(c, q, v);
        value = Mma::kAnd ? 4 * value - row : -2 * value;
      }
    }
  }

  // The bits of taps outside are zero, so that they added the sum of their weights.
  __device__ void take_back_outside(int (&c)[T::kRowTiles][T::kOutputTiles][4]) const {
#pragma unroll
    for (int q = 0; q < kPieces; ++q) {
      const uint32_t inside = taps_inside()[warp_row + q / kWords * 8 + lane / 4];
      const int n = warp_output + q % kWords * kWordBits;
      if (inside == all_taps() || left(n) <= 0) continue;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const Chunk outside = sums_outside(inside, first_output + n + 16 * half + lane % 4 * 4);
#pragma unroll
        for (int v = 0; v < 4; ++v)
          piece_value(c, q, 4 * half + v) -= p.rows.outside * static_cast<int>(outside.words[v]);
      }
    }
  }

  // Returns the sums over the taps outside, for outputs [output, output + 4).
  __device__ Chunk sums_outside(uint32_t inside, int output) const {
    const int y0 = inside & 255, y1 = inside >> 8 & 255, x0 = inside >> 16 & 255, x1 = inside >> 24;
    const int columns = p.rows.kernel_w + 1,
              corners[] = {y1 * columns + x1, y0 * columns + x1, y1 * columns + x0, y0 * columns + x0, p.sum_count - 1};
    Chunk sums[5];
#pragma unroll
    for (int i = 0; i < 5; ++i)
      sums[i] = *reinterpret_cast<const Chunk*>(tap_sums(output) + static_cast<int64_t>(corners[i]) * p.outputs_padded);
    Chunk outside;
#pragma unroll
    for (int v = 0; v < 4; ++v)
      outside.words[v] = sums[4].words[v] - (sums[0].words[v] - sums[1].words[v] - sums[2].words[v] + sums[3].words[v]);
    return outside;
  }

  template <bool kByResidual>
  __device__ void write_bits(int (&c)[T::kRowTiles][T::kOutputTiles][4]) const {
#pragma unroll
    for (int first = 0; first < kPieces; first += 4) {
      uint32_t bits = 0;
#pragma unroll
      for (int k = 3; k >= 0; --k) bits = compare<kByResidual>(c, first + k, bits);
      // Each lane finishes a word.
      const int q = first + lane % 4, row = first_row + warp_row + q / kWords * 8 + lane / 4;
      const int n = warp_output + q % kWords * kWordBits, count = left(n) < kWordBits ? left(n) : kWordBits;
      bits = part_nibbles(transpose_bytes(bits, lane)) ^ flips()[n / kWordBits];
      if (count < kWordBits) bits &= (1u << (count & (kWordBits - 1))) - 1u;
      if (row < p.rows.count && count > 0) store_bits(p.epilogue, row, outputs_before() + n, count, bits);
    }
  }

  // Shifts the eight comparisons of a piece into `bits`, the last output's first.
  template <bool kByResidual>
  __device__ uint32_t compare(int (&c)[T::kRowTiles][T::kOutputTiles][4], int q, uint32_t bits) const {
    const int n = warp_output + q % kWords * kWordBits, row = first_row + warp_row + q / kWords * 8 + lane / 4;
    const Epilogue& e = p.epilogue;
    uint32_t set = 0;  // bits v and 12 + v of outputs v
    if (kByResidual && row < p.rows.count && left(n) > 0) {
      const int count = left(n) < kWordBits ? left(n) : kWordBits;
      set = load_bits(e.residual_words + row * words_for(e.N), outputs_before() + n, count) >> lane % 4 * 4;
    }
#pragma unroll
    for (int half = 1; half >= 0; --half) {
      const int at = n + 16 * half + lane % 4 * 4;
      const Chunk base = *reinterpret_cast<const Chunk*>(column(kBase) + at);
      Chunk minus = base;
      if (kByResidual) minus = *reinterpret_cast<const Chunk*>(column(kBaseBesideMinus) + at);
#pragma unroll
      for (int v = 3; v >= 0; --v) {
        const uint32_t of = set >> (16 * half + v) & 1 ? minus.words[v] : base.words[v];
        bits = shift_in_sign(bits, piece_value(c, q, 4 * half + v) + static_cast<int>(of));
      }
    }
    return bits;
  }

  template <Kind kKind>
  __device__ void write_values(int (&c)[T::kRowTiles][T::kOutputTiles][4]) const {
    Chunk* slots = reinterpret_cast<Chunk*>(table + kTableWords) + thread;  // of this thread alone
    const bool in_runs = runs_are_aligned();
#pragma unroll
    for (int first = 0; first < kPieces; first += kRoundPieces) {
#pragma unroll
      for (int i = 0; i < 2 * kRoundPieces; ++i) {
        Chunk run;
#pragma unroll
        for (int v = 0; v < 4; ++v) run.words[v] = static_cast<uint32_t>(piece_value(c, first + i / 2, i % 2 * 4 + v));
        slots[i * kFinishers] = run;
      }
#pragma unroll 1
      for (int i = 0; i < 2 * kRoundPieces; ++i) {
        const int q = first + i / 2, row = first_row + warp_row + q / kWords * 8 + lane / 4;
        const int n = warp_output + q % kWords * kWordBits + i % 2 * 16 + lane % 4 * 4;
        if (row < p.rows.count && left(n) > 0) write_run<kKind>(slots[i * kFinishers], row, n, in_runs);
      }
    }
  }

  // Whether four outputs of a row are all there, or none, and are aligned as one piece of memory.
  __device__ bool runs_are_aligned() const {
    const Epilogue& e = p.epilogue;
    const uintptr_t addresses = reinterpret_cast<uintptr_t>(e.out) | reinterpret_cast<uintptr_t>(e.residual);
    return (static_cast<int>(e.N) | p.group_outputs) % 4 == 0 && addresses % sizeof(Chunk) == 0;
  }

  // Outputs [n, n + 4) of the tile.
  template <Kind kKind>
  __device__ void write_run(const Chunk& found, int row, int n, bool in_runs) const {
    const Epilogue& e = p.epilogue;
    const int64_t at = row * e.N + outputs_before() + n;
    const int count = left(n) < 4 ? left(n) : 4;
    const Chunk base = *reinterpret_cast<const Chunk*>(column(kBase) + n);
    Chunk run;
#pragma unroll
    for (int v = 0; v < 4; ++v) run.words[v] = found.words[v] + base.words[v];
    if (kKind == Kind::kInt32) return store_run(static_cast<uint32_t*>(e.out) + at, run.words, count, in_runs);
    float y[4];
    apply_affine(run, at, n, count, in_runs, y);
    if (e.out_type == FloatType::kFloat32) {
      store_run(static_cast<float*>(e.out) + at, y, count, in_runs);
    } else {
      uint16_t halves[4];
#pragma unroll
      for (int v = 0; v < 4; ++v) halves[v] = e.out_type == FloatType::kFloat16 ? to_half(y[v]) : to_bfloat16(y[v]);
      store_run(static_cast<uint16_t*>(e.out) + at, halves, count, in_runs);
    }
  }

  template <class Value>
  struct alignas(4 * sizeof(Value)) Run {
    Value values[4];
  };

  template <class Value>
  __device__ static void store_run(Value* to, const Value (&values)[4], int count, bool in_runs) {
    if (in_runs) {
      *reinterpret_cast<Run<Value>*>(to) = {values[0], values[1], values[2], values[3]};
      return;
    }
#pragma unroll
    for (int v = 0; v < 4; ++v)
      if (v < count) to[v] = values[v];
  }

  __device__ Run<float> constants(int index, int n) const {
    return *reinterpret_cast<const Run<float>*>(column(index) + n);
  }

  __device__ void apply_affine(const Chunk& dots, int64_t at, int n, int count, bool in_runs, float (&y)[4]) const {
    const Epilogue& e = p.epilogue;
    const Run<float> scale = constants(kScale, n), bias = constants(kBias, n);
#pragma unroll
    for (int v = 0; v < 4; ++v)
      y[v] =
          multiply_add(e.fused, static_cast<float>(static_cast<int>(dots.words[v])), scale.values[v], bias.values[v]);
    if (e.residual != nullptr) {
      float residual[4] = {};
      load_run(at, count, in_runs, residual);
      if (e.residual_scale != nullptr) {
        const Run<float> scales = constants(kResidualScale, n), biases = constants(kResidualBias, n);
#pragma unroll
        for (int v = 0; v < 4; ++v)
          residual[v] = multiply_add(e.fused, residual[v], scales.values[v], biases.values[v]);
      }
#pragma unroll
      for (int v = 0; v < 4; ++v) y[v] = add_rounded(y[v], residual[v]);
    }
    if (e.rprelu != nullptr) {
      const Run<float> before = constants(kBefore, n), slope = constants(kSlope, n), after = constants(kAfter, n);
#pragma unroll
      for (int v = 0; v < 4; ++v) y[v] = rprelu(y[v], before.values[v], slope.values[v], after.values[v]);
    }
  }

  // Four values of the residual.
  __device__ void load_run(int64_t at, int count, bool in_runs, float (&values)[4]) const {
    const Epilogue& e = p.epilogue;
    if (in_runs && e.residual_type == FloatType::kFloat32) {
      const Run<float> run = *reinterpret_cast<const Run<float>*>(static_cast<const float*>(e.residual) + at);
#pragma unroll
      for (int v = 0; v < 4; ++v) values[v] = run.values[v];
    } else if (in_runs) {
      const Run<uint16_t> run = *reinterpret_cast<const Run<uint16_t>*>(static_cast<const uint16_t*>(e.residual) + at);
#pragma unroll
      for (int v = 0; v < 4; ++v)
        values[v] = e.residual_type == FloatType::kFloat16 ? from_half(run.values[v]) : from_bfloat16(run.values[v]);
    } else {
#pragma unroll
      for (int v = 0; v < 4; ++v)
        if (v < count) values[v] = load_float(e.residual, e.residual_type, at + v);
    }
  }
};

}  // namespace stompp::cuda
