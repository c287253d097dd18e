// The emulated twin of AMX against the processor, and that a product on tiles is the same however it is cut.
#include <algorithm>

#include "check.h"
#include "core/isa/amx/amx.h"
#include "core/isa/amx/bf16_tiles.h"
#include "core/isa/amx/expand.h"
#include "core/isa/amx/tiles.h"
#include "core/isa/dispatch.h"
#include "core/product/bconv2d.h"
#include "emulated_amx.h"

namespace stompp {
namespace {

using test::Buffer;
using test::Random;

#if STOMPP_HAS_AMX

template <class T>
struct Lines {  // aligned as vector stores want it
  explicit Lines(int64_t n) : buffer(n + 64) {
    const auto misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(buffer.get()) % 64);
    data = buffer.get() + (64 - misaligned) / static_cast<int64_t>(sizeof(T));
  }
  Buffer<T> buffer;
  T* data;
};

amx::TilesOfRows tiles_of(const int8_t* a) { return {a, a + amx::kTileBytes, amx::kTileRowBytes}; }

// Sums of a few steps, begun anew and from kept ones.
template <class Tiles>
void run_tiles(int64_t rows, const int8_t* a, const int8_t* w, int64_t steps, int32_t* kept, int32_t* out, bool half) {
  using Block = amx::TileBlock<Tiles>;
  Tiles::configure(Block::shapes(rows));
  Block::load(kept);
  for (int64_t i = 0; i < steps; ++i)
    half ? Block::half_step(tiles_of(a + i * amx::kTileStep), w + i * amx::kTileStep)
         : Block::step(tiles_of(a + i * amx::kTileStep), w + i * amx::kTileStep);
  Block::keep(kept);
  Block::zero();
  half ? Block::half_step(tiles_of(a), w) : Block::step(tiles_of(a), w);
  Block::store(half, out, out + rows * 40, 40);
  Tiles::release();
}

TEST(emulated_tiles_equal_the_processors) {
  if (amx::kImplementation.missing() != nullptr) return;
  Random random(21);
  constexpr int64_t kSteps = 3, kBytes = kSteps * amx::kTileStep;
  for (int64_t rows : {1, 2, 5, 13, 16})
    for (bool half : {false, true}) {
      Buffer<int8_t> a(kBytes), w(kBytes);
      for (int64_t i = 0; i < kBytes; ++i)
        a[i] = static_cast<int8_t>(random.next()), w[i] = static_cast<int8_t>(random.next());
      Buffer<int32_t> kept(1024), out(32 * 40), emulated_kept(1024), emulated_out(32 * 40);
      for (int64_t i = 0; i < 1024; ++i) kept[i] = emulated_kept[i] = static_cast<int32_t>(random.next());
      run_tiles<amx::ProcessorTiles>(rows, a.get(), w.get(), kSteps, kept.get(), out.get(), half);
      run_tiles<test::EmulatedTiles>(rows, a.get(), w.get(), kSteps, emulated_kept.get(), emulated_out.get(), half);
      const std::string name = std::to_string(rows) + " rows";
      CHECK(std::equal(kept.get(), kept.get() + 1024, emulated_kept.get()), name + ": kept sums");
      CHECK(std::equal(out.get(), out.get() + 32 * 40, emulated_out.get()), name + ": stored sums");
    }
}

TEST(emulated_bf16_tiles_equal_the_processors) {
  if (amx::kImplementation.missing() != nullptr || amx::kFloatConvKernels.bf16.multiply == nullptr) return;
  Random random(24);
  constexpr int64_t kSteps = 3, kStride = kSteps * kBf16Step + kBf16Step;
  for (int64_t rows : {5, 16, 17, 32})
    for (int64_t parts : {1, 2}) {
      Buffer<uint16_t> x(kBf16BlockRows * kStride), w(kSteps * parts * kBf16PartWeights);
      for (int64_t i = 0; i < x.size; ++i) x[i] = float_to_bfloat16(random.uniform());
      for (int64_t i = 0; i < w.size; ++i) w[i] = float_to_bfloat16(random.uniform());
      Buffer<float> sums(kBf16BlockRows * kPanelOutputs), emulated(kBf16BlockRows * kPanelOutputs);
      Bf16Block block = {x.get(), kStride, rows, kSteps, parts, w.get(), sums.get(), kPanelOutputs};
      amx::Bf16Tiles<amx::ProcessorTiles>::begin();
      amx::Bf16Tiles<amx::ProcessorTiles>::multiply(block);
      amx::Bf16Tiles<amx::ProcessorTiles>::end();
      block.sums = emulated.get();
      amx::Bf16Tiles<test::EmulatedTiles>::begin();
      amx::Bf16Tiles<test::EmulatedTiles>::multiply(block);
      amx::Bf16Tiles<test::EmulatedTiles>::end();
      CHECK(std::equal(sums.get(), sums.get() + rows * kPanelOutputs, emulated.get()), std::to_string(rows) + " rows");
    }
}

TEST(emulated_expansion_equals_the_processors) {
  if (amx::kImplementation.missing() != nullptr) return;
  Random random(22);
  constexpr int64_t kSteps = 5;
  Buffer<uint8_t> bits(256);
  for (int64_t i = 0; i < bits.size; ++i) bits[i] = static_cast<uint8_t>(random.next());
  Lines<int8_t> out(kSteps * amx::kTileStep), emulated(kSteps * amx::kTileStep);
  const auto same = [&] { return std::equal(out.data, out.data + kSteps * amx::kTileStep, emulated.data); };
  const uint8_t* runs[] = {bits.get() + 3, bits.get() + 100, bits.get() + 56};
  amx::Expansion::row({runs, 8, 16}, kSteps, out.data);
  test::EmulatedExpansion::row({runs, 8, 16}, kSteps, emulated.data);
  CHECK(same(), "rows");
  amx::Expansion::pixels(bits.get(), 24, 4, 2, out.data);
  test::EmulatedExpansion::pixels(bits.get(), 24, 4, 2, emulated.data);
  CHECK(same(), "pixels");
  for (int valid = 0; valid < 256; ++valid) {
    amx::Expansion::part_of_row(bits.get(), static_cast<uint8_t>(valid), out.data);
    test::EmulatedExpansion::part_of_row(bits.get(), static_cast<uint8_t>(valid), emulated.data);
    CHECK(same(), "part of a row, " + std::to_string(valid));
  }
  for (bool half : {true, false}) {
    amx::Expansion::weights(bits.get(), half, out.data);
    test::EmulatedExpansion::weights(bits.get(), half, emulated.data);
    CHECK(same(), "weights");
  }
}

TEST(emulated_comparison_equals_the_processors) {
  if (amx::kImplementation.missing() != nullptr) return;
  Random random(23);
  constexpr int64_t kRows = 5, kStride = 3;
  Lines<int32_t> sums(kRows * kPanelOutputs);
  Buffer<int32_t> thresholds(2 * kPanelOutputs);
  Buffer<uint32_t> residual(kRows * kStride), out(kRows * kStride), emulated(kRows * kStride);
  for (int64_t i = 0; i < kRows * kPanelOutputs; ++i) sums.data[i] = static_cast<int32_t>(random.between(-3, 3));
  for (int64_t i = 0; i < thresholds.size; ++i) thresholds[i] = static_cast<int32_t>(random.between(-3, 3));
  for (int64_t i = 0; i < residual.size; ++i) residual[i] = static_cast<uint32_t>(random.next());
  for (const uint32_t* words : {static_cast<const uint32_t*>(nullptr), static_cast<const uint32_t*>(residual.get())}) {
    amx::SumsToBits rows = {sums.data, kRows,  thresholds.get(), thresholds.get() + 32,
                            words,     0x1234, out.get(),        kStride};
    amx::Expansion::to_bits(rows);
    rows.out = emulated.get();
    test::EmulatedExpansion::to_bits(rows);
    CHECK(std::equal(out.get(), out.get() + out.size, emulated.get()), "bits of sums");
  }
}

#endif

}  // namespace
}  // namespace stompp
