// The tensor-core kernel: tiles of rows x outputs, K in blocks of 512 bits through a ring of stages in shared memory.
//
// ldmatrix leaves the operands of a multiplication in registers side by side, as mma wants them. Eight rows of a chunk,
// swizzled, meet all banks.
#pragma once

#include "cuda/product/finish.cuh"
#include "cuda/product/multiply.cuh"

namespace stompp::cuda {

// A tile of kWarpsM x kWarpsN warps; kWarpsK warps share a tile and take the blocks of K in turn.
template <int kRows_, int kOutputs_, int kWarpsM_, int kWarpsN_, int kWarpsK_, int kStages_>
struct Tile {
  static constexpr int kRows = kRows_, kOutputs = kOutputs_;
  static constexpr int kWarpsM = kWarpsM_, kWarpsN = kWarpsN_, kWarpsK = kWarpsK_, kStages = kStages_;
  static constexpr int kThreads = 32 * kWarpsM * kWarpsN * kWarpsK;
  static constexpr int kRowTiles = kRows / kWarpsM / 16, kOutputTiles = kOutputs / kWarpsN / 8;
  static constexpr int kRowWords = kRows * kBlockWords, kOutputWords = kOutputs * kBlockWords;  // of a block
  static constexpr int kStageWords = kWarpsK * (kRowWords + kOutputWords);
  static constexpr int kRowChunks = kWarpsK * kRows * 4 / kThreads;        // that a thread copies
  static constexpr int kWeightChunks = kWarpsK * kOutputs * 4 / kThreads;  // the same
  static constexpr int kPartialWords = kWarpsK == 1 ? 0 : kWarpsK * kRows * kOutputs;
  static constexpr int kRingWords = kStages * kStageWords > kPartialWords ? kStages * kStageWords : kPartialWords;

  static_assert(kRows % (16 * kWarpsM) == 0 && kOutputs % (32 * kWarpsN) == 0, "whole mma tiles and words of bits");
  static_assert(kOutputs % kPanel == 0, "whole panels");
  static_assert((kRingWords + kRows) % 2 == 0, "barriers behind them are aligned");
  static_assert(kWarpsK * kRows * 4 % kThreads == 0 && kWarpsK * kOutputs * 4 % kThreads == 0,
                "every thread copies the same");
};

template <class Mma, class T, bool kPlain>
struct TileKernel {
  static constexpr int kThreads = T::kThreads;
  static constexpr bool kShares = Mma::kBlocks > 1;  // its weights, with the other block of its cluster
  static constexpr int kBarriers = Mma::kWarpGroup ? (kShares ? 2 : 1) * T::kStages : 0;
  static constexpr int kSharedBytes = (T::kRingWords + T::kRows) * 4 + kBarriers * static_cast<int>(sizeof(Barrier));
  static_assert(kSharedBytes <= Mma::kSharedBytes, "a block fits every GPU that runs it");

  const Product& p;
  uint32_t* ring;
  int* ones;          // of each row
  Barrier* barriers;  // of a warp group, for each stage: its weights have come; then: the other block has read them
  int group, first_row, first_output;
  int thread, lane, warp_m, warp_n, warp_k;

  __device__ TileKernel(const Product& product)
      : p(product),
        ring(reinterpret_cast<uint32_t*>(shared_memory())),
        ones(reinterpret_cast<int*>(ring + T::kRingWords)),
        barriers(reinterpret_cast<Barrier*>(ones + T::kRows)),
        group(static_cast<int>(blockIdx.z)),
        first_row(static_cast<int>(blockIdx.x) * T::kRows),
        first_output(static_cast<int>(blockIdx.y) * T::kOutputs),
        thread(static_cast<int>(threadIdx.x)),
        lane(thread % 32),
        warp_m(thread / 32 % T::kWarpsM),
        warp_n(thread / 32 / T::kWarpsM % T::kWarpsN),
        warp_k(thread / 32 / (T::kWarpsM * T::kWarpsN)) {}

  __device__ uint32_t* stage(int step) const { return ring + step % T::kStages * T::kStageWords; }

  // What this thread copies, where it lies at step 0.
  struct Sources {
    RowCopies<T, kPlain> rows;
    const uint32_t* weights[T::kWeightChunks];  // null for a panel that does not exist
    const uint32_t* panel;                      // of a warp group, which has no weights: the panel of this warp
  };

  // Weights come in the order of the panels: panel, block, chunk.
  static constexpr int kPanelChunks = kPanelBlockWords / kChunkWords;
  __device__ static int weight_panel(int index) { return index / (T::kWarpsK * kPanelChunks); }
  __device__ static int weight_block(int index) { return index % (T::kWarpsK * kPanelChunks) / kPanelChunks; }

  __device__ void find_sources(Sources* sources) const {
    sources->rows.find(first_row);
    if constexpr (Mma::kWarpGroup) {
      const int64_t panel = static_cast<int64_t>(group) * p.panels_per_group + first_output / kPanel + thread / 32;
      sources->panel = p.panels + panel * p.rows.k_blocks * kPanelBlockWords;
    } else {
#pragma unroll
      for (int i = 0; i < T::kWeightChunks; ++i) {
        const int index = thread + i * T::kThreads, number = first_output / kPanel + weight_panel(index);
        const int64_t panel = static_cast<int64_t>(group) * p.panels_per_group + number;
        const uint32_t* block = p.panels + (panel * p.rows.k_blocks + weight_block(index)) * kPanelBlockWords;
        sources->weights[i] = number < p.panels_per_group ? block + index % kPanelChunks * kChunkWords : nullptr;
      }
    }
  }

  __device__ void start_copies(const Sources& sources, int step) const {
    if (step * T::kWarpsK >= p.rows.k_blocks) return;
    uint32_t* to = stage(step);
    sources.rows.start(step, to);
    to += T::kWarpsK * T::kRowWords;
    if constexpr (Mma::kWarpGroup) {
      if (lane == 0 && thread / 32 < tile_panels()) copy_panel(sources, step, to);
    } else {
      copy_weights(sources, step, to);
    }
  }

  __device__ void copy_weights(const Sources& sources, int step, uint32_t* to) const {
    const int64_t offset = static_cast<int64_t>(step) * T::kWarpsK * kPanelBlockWords;
#pragma unroll
    for (int i = 0; i < T::kWeightChunks; ++i) {
      const int index = thread + i * T::kThreads, block = weight_block(index);
      const bool exists = sources.weights[i] != nullptr && step * T::kWarpsK + block < p.rows.k_blocks;
      uint32_t* at =
          to + block * T::kOutputWords + weight_panel(index) * kPanelBlockWords + index % kPanelChunks * kChunkWords;
      copy_async<16>(at, exists ? sources.weights[i] + offset : p.panels, exists);
    }
  }

  __device__ Barrier* barrier(int step) const { return barriers + step % T::kStages; }
  __device__ Barrier* read_barrier(int step) const { return barrier(step) + T::kStages; }

  // Those that exist.
  __device__ int tile_panels() const {
    constexpr int kTilePanels = T::kOutputs / kPanel;
    static_assert(kTilePanels <= T::kThreads / 32, "a warp for each panel");
    const int left = p.panels_per_group - first_output / kPanel;
    return left < kTilePanels ? left : kTilePanels;
  }

  // A panel of a step's weights, by one thread of a warp for each: a panel's block is a single piece of memory, in
  // wgmma's order.
  //
  // Panels that do not exist are left out, and wgmma multiplies what happens to lie in their place. An output's
  // products depend on its own weights alone, and theirs are outputs from panels_per_group * kPanel >= group_outputs
  // on, of which the epilogue writes none.
  //
  // Of two blocks that share their weights, each brings every other panel to both, and both expect all. Bytes may come
  // to a block before it expects them: their phase ends only when all of the block's warps have said what they expect.
  // A stage is overwritten when the other block, too, has read what it held a round before, for which that block's
  // warps arrive here; its own warps have met.
  //
  // It needs no proxy fence. wgmma, the last to use this place, read it through the asynchronous proxy, by which these
  // copies write, and was done for all warps before the barrier of the block that precedes them. Threads write here
  // only in the epilogue, after all of them have waited for all copies.
  __device__ void copy_panel(const Sources& sources, int step, uint32_t* to) const {
    constexpr int kBytes = kPanelBlockWords * kWordBytes;
    const int panel = thread / 32;
    expect_bytes(barrier(step), kBytes);
    if constexpr (kShares) {
      if (panel % Mma::kBlocks != cluster_rank()) return;
      if (step >= T::kStages) wait_barrier(read_barrier(step), (step / T::kStages - 1) & 1);
    }
    copy_bulk<Mma::kBlocks>(to + panel * kPanelBlockWords,
                            sources.panel + static_cast<int64_t>(step) * kPanelBlockWords, kBytes, barrier(step));
  }

  // This lane's row of one of the four matrices of a fragment.
  __device__ static Fragment load_fragment(const uint32_t* block, int row, int chunk) {
    Fragment fragment;
    load_matrices(fragment.words, block + row * kBlockWords + swizzle(row, chunk) * kChunkWords);
    return fragment;
  }

  __device__ void start_multiplying(int step, int (&c)[32][4]) const {
    wait_barrier(barrier(step), step / T::kStages & 1);
    Mma::start(c, stage(step) + warp_m / 4 * 64 * kBlockWords, stage(step) + T::kRowWords);
    if (kShares && step > 0) arrive_at_block(read_barrier(step - 1), 1 - cluster_rank());
  }

  __device__ void multiply(int step, int (&c)[T::kRowTiles][T::kOutputTiles][4]) const {
    const uint32_t* rows = stage(step) + warp_k * T::kRowWords;
    const uint32_t* weights = stage(step) + T::kWarpsK * T::kRowWords + warp_k * T::kOutputWords;
    Mma::multiply(
        c,
        [&](int i, int k) {
          return load_fragment(rows, (warp_m * T::kRowTiles + i) * 16 + lane % 16, 2 * k + lane / 16);
        },
        [&](int j) { return load_fragment(weights, (warp_n * T::kOutputTiles + j) * 8 + lane % 8, lane / 8); });
  }

  // Adds up what the warps of a tile have of it, in those of the first.
  __device__ void add_partial_products(int (&c)[T::kRowTiles][T::kOutputTiles][4]) const {
    constexpr int kValues = T::kRowTiles * T::kOutputTiles * 4;
    int* partial = reinterpret_cast<int*>(ring);
    const int warps = T::kWarpsM * T::kWarpsN, own = thread % (32 * warps);
    int* values = &c[0][0][0];
    if (warp_k > 0) {
#pragma unroll
      for (int i = 0; i < kValues; ++i) partial[(warp_k * kValues + i) * 32 * warps + own] = values[i];
    }
    synchronize();
    if (warp_k == 0) {
      for (int k = 1; k < T::kWarpsK; ++k) {
#pragma unroll
        for (int i = 0; i < kValues; ++i) values[i] += partial[(k * kValues + i) * 32 * warps + own];
      }
    }
    synchronize();  // before the ring is used again
  }

  __device__ void run() {
    Sources sources = {{p.rows, group, thread}, {}, nullptr};
    int counts[T::kRowChunks] = {};
    int c[T::kRowTiles][T::kOutputTiles][4] = {};
    find_sources(&sources);
    for (int row = thread; row < T::kRows; row += T::kThreads) ones[row] = 0;
    if constexpr (Mma::kWarpGroup) {
      if (thread == 0) {
        init_barriers<Mma::kBlocks>(barriers, T::kStages, tile_panels());
        if (kShares) init_barriers<Mma::kBlocks>(barriers + T::kStages, T::kStages, T::kThreads / 32);
      }
      if constexpr (kShares) {
        arrive_in_cluster();
        wait_for_cluster();  // before another block's copies use them
      } else {
        synchronize();  // before another warp's copies use them
      }
    }

    // Products that are still under way read the stage before the present one.
    constexpr int kAhead = Mma::kWarpGroup ? T::kStages - 2 : T::kStages - 1;
    const int steps = (p.rows.k_blocks + T::kWarpsK - 1) / T::kWarpsK;
#pragma unroll 1
    for (int step = 0; step < kAhead; ++step) {
      start_copies(sources, step);
      commit_copies();
    }
    for (int step = 0; step < steps; ++step) {
      wait_for_copies<kAhead - 1>();
      if (Mma::kAnd) sources.rows.count(stage(step), counts);
      if (Mma::kWarpGroup) publish_to_tensor_cores();
      synchronize();  // this stage, weights in bulk apart, has come, and all are done with the one that is overwritten
      start_copies(sources, step + kAhead);
      commit_copies();
      if constexpr (Mma::kWarpGroup)
        start_multiplying(step, c[0]);
      else
        multiply(step, c);
    }
    // From here on this block brings nothing to the other, and has got all that the other brings.
    if constexpr (kShares) arrive_in_cluster();
    wait_for_copies<0>();
    if constexpr (Mma::kWarpGroup) wait_for_all_products(c[0]);
    synchronize();
    if (Mma::kAnd) {
#pragma unroll
      for (int i = 0; i < T::kRowChunks; ++i)
        add_atomically(&ones[RowCopies<T, kPlain>::row_of(thread + i * T::kThreads)], counts[i]);
    }
    if (T::kWarpsK > 1) add_partial_products(c);
    constexpr int kTable = kTableWords<T>;
    const TileEpilogue<Mma, T, kPlain, T::kRingWords - kTable> epilogue(p, {group, first_row, first_output}, ring,
                                                                        ring + kTable, ones, thread, warp_m, warp_n);
    epilogue.prepare_outputs(thread, T::kThreads);
    epilogue.prepare_rows();
    synchronize();
    if (warp_k == 0) epilogue.run(c);
    if constexpr (kShares) wait_for_cluster();  // the other block may still write here until then
  }
};

template <class Mma, class T, bool kPlain>
__global__ void __launch_bounds__(T::kThreads) product_kernel(const Product product) {
  TileKernel<Mma, T, kPlain>(product).run();
}

// Whole clusters: a block whose rows do not exist brings its share of the weights all the same.
template <class Mma, class T>
Size3 tile_grid(const Product& p) {
  return {static_cast<unsigned>(ceil_div(p.rows.count, T::kRows * Mma::kBlocks) * Mma::kBlocks),
          static_cast<unsigned>(ceil_div(p.group_outputs, T::kOutputs)), static_cast<unsigned>(p.groups())};
}

template <class Mma, class T>
Status launch_tiles(const Product& p, Stream stream) {
  const Size3 grid = tile_grid<Mma, T>(p);
  constexpr int kSharedBytes = TileKernel<Mma, T, true>::kSharedBytes;
  return is_plain(p) ? launch<product_kernel<Mma, T, true>, kSharedBytes>(grid, T::kThreads, stream, p)
                     : launch<product_kernel<Mma, T, false>, kSharedBytes>(grid, T::kThreads, stream, p);
}

}  // namespace stompp::cuda
