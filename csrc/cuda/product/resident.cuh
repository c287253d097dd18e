// The product where weights stay in shared memory for all of K: for many rows beside a short K, as convolutions have.
//
// A block brings its weights once. Each of its two warp groups then goes over tiles of rows by itself, with a ring of
// rows of its own, so that one multiplies while the other finishes a tile. The first rows of the next tile are on their
// way by then.
#pragma once

#include "cuda/product/finish.cuh"
#include "cuda/product/multiply.cuh"

namespace stompp::cuda {

// T: the tile of a warp group. kSteps: blocks of K that there is room for.
template <class T, int kSteps, bool kPlain>
struct ResidentKernel {
  using Mma = WarpGroupMma;
  static constexpr int kWarpGroups = 2, kThreads = kWarpGroups * T::kThreads;
  static constexpr int kAhead =
      T::kStages - 2;                     // products that are still under way read the stage before the present one
  static constexpr int kRoundPieces = 2;  // of an epilogue: what there is room for

  // In shared memory: weights, a ring of rows for each warp group, the table of the outputs, what each epilogue has of
  // its own, the ones of the rows, and barriers.
  static constexpr int kRingWords = T::kStages * T::kRowWords;
  static constexpr int kOwnWords = T::kRows + kRoundPieces * 8 * T::kThreads;
  static constexpr int kWords =
      kSteps * T::kOutputWords + kTableWords<T> + kWarpGroups * (kRingWords + kOwnWords + T::kRows);
  static constexpr int kSharedBytes = kWords * kWordBytes + kSteps * static_cast<int>(sizeof(Barrier));

  static_assert(T::kThreads == 128 && T::kRows == 64 && T::kOutputs == 256, "a tile is what a warp group multiplies");
  static_assert(kSharedBytes <= Mma::kSharedBytes, "a block fits every GPU that runs it");
  static_assert(kWords % 2 == 0, "barriers are aligned");

  using Epilogue = TileEpilogue<Mma, T, kPlain, kOwnWords>;

  const Product& p;
  const int blocks;  // that share the rows
  const int group, first_output, warp_group, thread;
  uint32_t *const weights, *const ring, *const table, *const own;
  int* const ones;          // of each row
  Barrier* const barriers;  // for each step: its weights have come

  __device__ ResidentKernel(const Product& product)
      : p(product),
        blocks(static_cast<int>(gridDim.x)),
        group(static_cast<int>(blockIdx.z)),
        first_output(static_cast<int>(blockIdx.y) * T::kOutputs),
        warp_group(static_cast<int>(threadIdx.x) / T::kThreads),
        thread(static_cast<int>(threadIdx.x) % T::kThreads),
        weights(reinterpret_cast<uint32_t*>(shared_memory())),
        ring(weights + kSteps * T::kOutputWords + warp_group * kRingWords),
        table(weights + kSteps * T::kOutputWords + kWarpGroups * kRingWords),
        own(table + kTableWords<T> + warp_group * kOwnWords),
        ones(reinterpret_cast<int*>(table + kTableWords<T> + kWarpGroups * kOwnWords) + warp_group * T::kRows),
        barriers(reinterpret_cast<Barrier*>(weights + kWords)) {}

  __device__ uint32_t* stage(int step) const { return ring + step % T::kStages * T::kRowWords; }

  __device__ int tiles() const { return static_cast<int>(ceil_div(p.rows.count, T::kRows)); }

  // Panels that do not exist are left out, as copy_panel of TileKernel says.
  __device__ int tile_panels() const {
    constexpr int kTilePanels = T::kOutputs / kPanel;
    const int left = p.panels_per_group - first_output / kPanel;
    return left < kTilePanels ? left : kTilePanels;
  }

  // A panel of a step by a thread. Nothing writes there again.
  __device__ void copy_weights() const {
    constexpr int kBytes = kPanelBlockWords * kWordBytes;
    static_assert(kSteps * T::kOutputs / kPanel <= kThreads, "a thread for each panel and step");
    const int index = static_cast<int>(threadIdx.x), step = index / tile_panels(), number = index % tile_panels();
    if (step >= p.rows.k_blocks) return;
    const int64_t panel = static_cast<int64_t>(group) * p.panels_per_group + first_output / kPanel + number;
    expect_bytes(barriers + step, kBytes);
    copy_bulk(weights + step * T::kOutputWords + number * kPanelBlockWords,
              p.panels + (panel * p.rows.k_blocks + step) * kPanelBlockWords, kBytes, barriers + step);
  }

  // The other warp group goes its own way.
  __device__ void synchronize_warp_group() const { synchronize_some(1 + warp_group, T::kThreads); }

  __device__ void start_copies(const RowCopies<T, kPlain>& rows, int step) const {
    if (step < p.rows.k_blocks) rows.start(step, stage(step));
    commit_copies();
  }

  // Sends for the first rows of a tile, if there is one, when nothing reads the ring any more.
  __device__ void begin_tile(RowCopies<T, kPlain>& rows, int tile) const {
    if (tile >= tiles()) return;
    rows.find(tile * T::kRows);
#pragma unroll 1
    for (int step = 0; step < kAhead; ++step) start_copies(rows, step);
  }

  __device__ void multiply_tile(const RowCopies<T, kPlain>& rows, int (&c)[32][4]) const {
    int counts[T::kRowChunks] = {};
    for (int step = 0; step < p.rows.k_blocks; ++step) {
      wait_for_copies<kAhead - 1>();
      rows.count(stage(step), counts);
      publish_to_tensor_cores();
      synchronize_warp_group();  // these rows have come, and all are done with those that are overwritten
      start_copies(rows, step + kAhead);
      wait_barrier(barriers + step, 0);
      Mma::start(c, stage(step), weights + step * T::kOutputWords);
    }
    wait_for_all_products(c);
    store_ones(counts);
  }

  // Four threads side by side have the four chunks of a row.
  __device__ void store_ones(int (&counts)[T::kRowChunks]) const {
#pragma unroll
    for (int i = 0; i < T::kRowChunks; ++i) {
      counts[i] += shuffle_xor(counts[i], 1);
      counts[i] += shuffle_xor(counts[i], 2);
      if (thread % 4 == 0) ones[RowCopies<T, kPlain>::row_of(thread + i * T::kThreads)] = counts[i];
    }
  }

  __device__ Epilogue epilogue(int tile) const {
    return {p, {group, tile * T::kRows, first_output}, table, own, ones, thread, thread / 32, 0};
  }

  __device__ void run() const {
    if (threadIdx.x == 0) init_barriers(barriers, p.rows.k_blocks, tile_panels());
    RowCopies<T, kPlain> rows(p.rows, group, thread);
    int tile = warp_group * blocks + static_cast<int>(blockIdx.x);
    begin_tile(rows, tile);
    synchronize();  // before another warp's copies use the barriers
    copy_weights();
    epilogue(tile).prepare_outputs(static_cast<int>(threadIdx.x), kThreads);
    synchronize();  // before another warp reads the table
    for (; tile < tiles(); tile += kWarpGroups * blocks) {
      int c[1][32][4] = {};
      multiply_tile(rows, c[0]);
      epilogue(tile).prepare_rows();
      synchronize_warp_group();  // ones and taps are there, and nobody reads the ring
      begin_tile(rows, tile + kWarpGroups * blocks);
      epilogue(tile).run(c);
    }
  }
};

template <class T, int kSteps, bool kPlain>
__global__ void __launch_bounds__(2 * T::kThreads) resident_kernel(const Product product) {
  ResidentKernel<T, kSteps, kPlain>(product).run();
}

// As many blocks as multiprocessors, each with some of the outputs and a share of the rows.
template <class T, int kSteps>
Status launch_resident(const Product& p, Stream stream) {
  using Kernel = ResidentKernel<T, kSteps, true>;
  int multiprocessors = 0;
  const Status status = count_multiprocessors(&multiprocessors);
  if (!status.is_ok()) return status;
  const int64_t output_tiles = ceil_div(p.group_outputs, T::kOutputs);
  const int64_t most = ceil_div(p.rows.count, Kernel::kWarpGroups * T::kRows);
  const int64_t fair = multiprocessors / (output_tiles * p.groups());
  const Size3 grid = {static_cast<unsigned>(fair < 1      ? 1
                                            : fair < most ? fair
                                                          : most),
                      static_cast<unsigned>(output_tiles), static_cast<unsigned>(p.groups())};
  constexpr int kBytes = Kernel::kSharedBytes;
  return is_plain(p) ? launch<resident_kernel<T, kSteps, true>, kBytes>(grid, Kernel::kThreads, stream, p)
                     : launch<resident_kernel<T, kSteps, false>, kBytes>(grid, Kernel::kThreads, stream, p);
}

}  // namespace stompp::cuda
