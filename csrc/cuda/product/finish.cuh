// Accumulators of a tile to what its epilogue writes.
//
// Lane 4 g + t of a warp has, of each word of 32 outputs, outputs 4 t to 4 t + 3 and 16 + 4 t to 16 + 4 t + 3 of rows g
// and g + 8 of a row tile: weight_layout.h orders the panels so. A lane's eight outputs of a word and a row are a
// piece; piece q is of rows 8 (q / kWords) + g of the warp and of its word q % kWords. Bits are compared as they lie
// there, eight to a byte, and the four lanes of a quad exchange bytes until each has whole words. Integers and floats
// leave in runs of four; their loop goes over copies in shared memory, as registers have no index. So does the loop
// that computes what borders and residuals add to a row. Unrolled, both would be several times as long as the main
// loop.
#pragma once

#include "cuda/product/runs.cuh"

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

// A number for each output, of several kinds.
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
  kLow,
  kHigh,
  kColumns
};

// What outputs need in shared memory: their columns, and the flips of their words.
template <class T>
constexpr int kTableWords = round_up(kColumns * T::kOutputs + T::kOutputs / kWordBits, kChunkWords);

struct TilePlace {
  int group, first_row, first_output;
};

// kPlain: of a matrix, which has no borders. kOwnWords: of shared memory beside the table, for the taps of the rows and
// for accumulators.
template <class Mma, class T, bool kPlain, int kOwnWords>
struct TileEpilogue {
  static constexpr int kWords = T::kOutputTiles / 4;               // of a warp's outputs
  static constexpr int kPieces = T::kRowTiles * 2 * kWords;        // of a lane
  static constexpr int kFinishers = 32 * T::kWarpsM * T::kWarpsN;  // threads

  // As many pieces a round as there is room for.
  static constexpr int pieces_a_round() {
    int pieces = kPieces;
    while (pieces * 8 * kFinishers > kOwnWords - T::kRows) pieces /= 2;
    return pieces;
  }
  static constexpr int kRoundPieces = pieces_a_round();
  static_assert(kPieces % 4 == 0 && kRoundPieces > 0 && kPieces % kRoundPieces == 0, "whole words and rounds");

  const Product& p;
  int* table;
  uint32_t* own;
  const int* ones;  // of each row of the tile
  int group, first_row, first_output, thread, lane, warp_row, warp_output;

  // thread_, warp_m, warp_n: where this thread is among the tile's, and its warp in the tile.
  __device__ TileEpilogue(const Product& product, const TilePlace& place, uint32_t* table_, uint32_t* own_,
                          const int* row_ones, int thread_, int warp_m, int warp_n)
      : p(product),
        table(reinterpret_cast<int*>(table_)),
        own(own_),
        ones(row_ones),
        group(place.group),
        first_row(place.first_row),
        first_output(place.first_output),
        thread(thread_),
        lane(thread % 32),
        warp_row(warp_m * T::kRowTiles * 16),
        warp_output(warp_n * T::kOutputTiles * 8) {}

  __device__ int* column(int index) const { return table + index * T::kOutputs; }
  __device__ uint32_t* flips() const { return reinterpret_cast<uint32_t*>(column(kColumns)); }
  __device__ uint32_t* taps_inside() const { return own; }  // of each row: y0, y1, x0, x1, a byte each
  __device__ uint32_t all_taps() const { return static_cast<uint32_t>(p.rows.kernel_h << 8 | p.rows.kernel_w << 24); }
  __device__ bool has_borders() const { return !kPlain && !p.rows.is_matrix && p.rows.outside != 0; }

  __device__ int outputs_before() const { return group * p.group_outputs + first_output; }
  __device__ bool chooses_by_residual() const {
    return p.epilogue.kind == Kind::kThreshold && p.epilogue.residual_words != nullptr;
  }
  __device__ int row_of(int q) const { return warp_row + q / kWords * 8 + lane / 4; }
  __device__ int word_of(int q) const { return warp_output + q % kWords * kWordBits; }  // its first output
  __device__ int run_in_word(int half) const { return 16 * half + lane % 4 * 4; }

  // A run of this thread alone, in shared memory.
  __device__ Chunk* slot(int run) const { return reinterpret_cast<Chunk*>(own + T::kRows) + thread + run * kFinishers; }

  // Returns how many outputs exist from output n of the tile on; negative where the tile ends after the last one.
  __device__ int left(int n) const { return p.group_outputs - first_output - n; }

  // A barrier comes between these two and `run`. Whole warps, together all of the block's `threads`.
  __device__ void prepare_outputs(int thread_of_block, int threads) const {
#pragma unroll 1
    for (int n = thread_of_block; n < T::kOutputs; n += threads) prepare_output(n);
  }

  // By all threads of the tile.
  __device__ void prepare_rows() const {
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
      if (chooses_by_residual()) column(kBaseBesideMinus)[n] = base - clamp(e.thresholds[e.N + output]);
      const uint32_t word = ballot(exists && (e.flip_words[output / kWordBits] >> output % kWordBits & 1) != 0);
      if (lane == 0) flips()[n / kWordBits] = word;
    } else if (e.kind == Kind::kAffine) {
      const AffineColumn affine = AffineColumn::at(e, output);
      const float values[] = {affine.scale,         affine.bias,   affine.residual_scale,
                              affine.residual_bias, affine.before, affine.slope,
                              affine.after,         affine.low,    affine.high};
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
    if (has_borders() || chooses_by_residual()) add_corrections(c);
    if (p.epilogue.kind == Kind::kThreshold)
      write_bits(c);
    else
      write_values(c);
  }

  // Makes accumulators dot products, but for what an output adds to all of its own.
  __device__ void add_rows(int (&c)[T::kRowTiles][T::kOutputTiles][4]) const {
#pragma unroll
    for (int q = 0; q < kPieces; ++q) {
      const int row = Mma::kAnd ? 2 * ones[row_of(q)] : 0;
#pragma unroll
      for (int v = 0; v < 8; ++v) {
        int& value = piece_value(c, q, v);
        value = Mma::kAnd ? 4 * value - row : -2 * value;
      }
    }
  }

  // Adds what differs from row to row: thresholds are those of a sum beside +1, and the bits of taps outside are zero,
  // so that they added the sum of their weights.
  __device__ void add_corrections(int (&c)[T::kRowTiles][T::kOutputTiles][4]) const {
#pragma unroll 1
    for (int first = 0; first < kPieces; first += kRoundPieces) {
#pragma unroll 1
      for (int i = 0; i < 2 * kRoundPieces; ++i)
        if (is_corrected(first + i / 2)) *slot(i) = correction(first + i / 2, i % 2);
#pragma unroll
      for (int q = 0; q < kPieces; ++q) {
        if (q / kRoundPieces * kRoundPieces != first || !is_corrected(q)) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const Chunk more = *slot(q % kRoundPieces * 2 + half);
#pragma unroll
          for (int v = 0; v < 4; ++v) piece_value(c, q, 4 * half + v) += static_cast<int>(more.words[v]);
        }
      }
    }
  }

  __device__ bool is_corrected(int q) const {
    if (left(word_of(q)) <= 0 || first_row + row_of(q) >= p.rows.count) return false;
    return chooses_by_residual() || taps_inside()[row_of(q)] != all_taps();
  }

  __device__ Chunk correction(int q, int half) const {
    const int n = word_of(q) + run_in_word(half);
    Chunk sum = {};
    if (has_borders() && taps_inside()[row_of(q)] != all_taps()) {
      sum = sums_outside(taps_inside()[row_of(q)], first_output + n);
#pragma unroll
      for (int v = 0; v < 4; ++v) sum.words[v] *= static_cast<uint32_t>(-p.rows.outside);
    }
    if (chooses_by_residual()) {
      const Epilogue& e = p.epilogue;
      const int64_t row = first_row + row_of(q);
      const int count = left(word_of(q)) < kWordBits ? left(word_of(q)) : kWordBits;
      const uint32_t* words = e.residual_words + row * words_for(e.N);
      const uint32_t set = load_bits(words, outputs_before() + word_of(q), count) >> run_in_word(half);
      const Chunk beside_plus = *reinterpret_cast<const Chunk*>(column(kBase) + n);
      const Chunk beside_minus = *reinterpret_cast<const Chunk*>(column(kBaseBesideMinus) + n);
#pragma unroll
      for (int v = 0; v < 4; ++v)
        sum.words[v] += (set >> v & 1) != 0 ? beside_minus.words[v] - beside_plus.words[v] : 0u;
    }
    return sum;
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

  __device__ void write_bits(int (&c)[T::kRowTiles][T::kOutputTiles][4]) const {
#pragma unroll
    for (int first = 0; first < kPieces; first += 4) {
      uint32_t bits = 0;
#pragma unroll
      for (int k = 3; k >= 0; --k) bits = compare(c, first + k, bits);
      // Each lane finishes a word.
      const int q = first + lane % 4, n = word_of(q), count = left(n) < kWordBits ? left(n) : kWordBits;
      const int64_t row = first_row + row_of(q);
      bits = part_nibbles(transpose_bytes(bits, lane)) ^ flips()[n / kWordBits];
      if (count < kWordBits) bits &= (1u << (count & (kWordBits - 1))) - 1u;
      uint32_t* words = static_cast<uint32_t*>(p.epilogue.out) + row * words_for(p.epilogue.N);
      if (row < p.rows.count && count > 0) store_bits(p.epilogue, words, outputs_before() + n, count, bits);
    }
  }

  // Shifts the eight comparisons of a piece into `bits`, the last output's first.
  __device__ uint32_t compare(int (&c)[T::kRowTiles][T::kOutputTiles][4], int q, uint32_t bits) const {
#pragma unroll
    for (int half = 1; half >= 0; --half) {
      const Chunk base = *reinterpret_cast<const Chunk*>(column(kBase) + word_of(q) + run_in_word(half));
#pragma unroll
      for (int v = 3; v >= 0; --v)
        bits = shift_in_sign(bits, piece_value(c, q, 4 * half + v) + static_cast<int>(base.words[v]));
    }
    return bits;
  }

  __device__ void write_values(int (&c)[T::kRowTiles][T::kOutputTiles][4]) const {
    const bool in_runs = runs_are_aligned();
#pragma unroll 1
    for (int first = 0; first < kPieces; first += kRoundPieces) {
#pragma unroll
      for (int q = 0; q < kPieces; ++q) {
        if (q / kRoundPieces * kRoundPieces != first) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          Chunk run;
#pragma unroll
          for (int v = 0; v < 4; ++v) run.words[v] = static_cast<uint32_t>(piece_value(c, q, 4 * half + v));
          *slot(q % kRoundPieces * 2 + half) = run;
        }
      }
      if (p.epilogue.kind == Kind::kInt32)
        write_pieces<Kind::kInt32>(first, in_runs);
      else
        write_pieces<Kind::kAffine>(first, in_runs);
    }
  }

  // Those of a round, which begins with piece `first`.
  template <Kind kKind>
  __device__ void write_pieces(int first, bool in_runs) const {
    const Epilogue& e = p.epilogue;
#pragma unroll 1
    for (int i = 0; i < kRoundPieces; ++i) {
      const int n = word_of(first + i);
      const int64_t row = first_row + row_of(first + i);
      uint32_t bits = 0;
#pragma unroll 1
      for (int half = 0; half < 2; ++half) {
        const int run = run_in_word(half);
        if (row < p.rows.count && left(n + run) > 0)
          bits |= write_run<kKind>(*slot(2 * i + half), row, n + run, in_runs) << run;
      }
      if (kKind != Kind::kAffine || e.sign_words == nullptr) continue;
      bits |= shuffle_xor(bits, 1);
      bits |= shuffle_xor(bits, 2);
      const int count = left(n) < kWordBits ? left(n) : kWordBits;
      if (lane % 4 == 0 && row < p.rows.count && count > 0)
        store_bits(e, e.sign_words + row * words_for(e.N), outputs_before() + n, count, bits);
    }
  }

  // Whether four outputs of a row are all there, or none, and are aligned as one piece of memory.
  __device__ bool runs_are_aligned() const {
    const Epilogue& e = p.epilogue;
    const uintptr_t addresses = reinterpret_cast<uintptr_t>(e.out) | reinterpret_cast<uintptr_t>(e.residual);
    return (static_cast<int>(e.N) | p.group_outputs) % 4 == 0 && addresses % sizeof(Chunk) == 0;
  }

  // Outputs [n, n + 4) of the tile; returns their signs where an affine epilogue asks for them.
  template <Kind kKind>
  __device__ uint32_t write_run(const Chunk& found, int64_t row, int n, bool in_runs) const {
    const Epilogue& e = p.epilogue;
    const int64_t at = row * e.N + outputs_before() + n;
    const int count = left(n) < 4 ? left(n) : 4;
    const Chunk base = *reinterpret_cast<const Chunk*>(column(kBase) + n);
    Chunk run;
#pragma unroll
    for (int v = 0; v < 4; ++v) run.words[v] = found.words[v] + base.words[v];
    if (kKind == Kind::kInt32) {
      store_run(static_cast<uint32_t*>(e.out) + at, run.words, count, in_runs);
      return 0;
    }
    float y[4];
    apply_affine(run, at, n, count, in_runs, y);
    if (e.out != nullptr) store_floats(e, at, y, count, in_runs);
    return e.sign_words == nullptr ? 0 : signs(y, n, count);
  }

  __device__ uint32_t signs(const float (&y)[4], int n, int count) const {
    const Run<float> low = constants(kLow, n), high = constants(kHigh, n);
    uint32_t bits = 0;
#pragma unroll
    for (int v = 0; v < 4; ++v)
      bits |= static_cast<uint32_t>(v < count && (y[v] < low.values[v] || y[v] > high.values[v])) << v;
    return bits;
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
      load_residual(e, at, count, in_runs, residual);
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
};

}  // namespace stompp::cuda
