// The emulated twin of AMX against the processor, and that a product on tiles is the same however it is cut.
#include <algorithm>

#include "check.h"
#include "core/amx/amx.h"
#include "core/amx/expand.h"
#include "core/amx/tiles.h"
#include "core/bconv2d.h"
#include "core/dispatch.h"
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

// Sums of a few steps, begun anew and from kept ones.
template <class Tiles>
void run_tiles(int64_t rows, const int8_t* a, const int8_t* w, int64_t steps, int32_t* kept, int32_t* out, bool half) {
  using Block = amx::TileBlock<Tiles>;
  Tiles::configure(Block::shapes(rows));
  Block::load(kept);
  for (int64_t i = 0; i < steps; ++i)
    half ? Block::half_step(a + i * Block::kStep, w + i * Block::kStep)
         : Block::step(a + i * Block::kStep, w + i * Block::kStep);
  Block::keep(kept);
  Block::zero();
  half ? Block::half_step(a, w) : Block::step(a, w);
  Block::store(rows, half, out, 40);
  Tiles::release();
}

TEST(emulated_tiles_equal_the_processors) {
  if (amx::kImplementation.missing() != nullptr) return;
  Random random(21);
  constexpr int64_t kSteps = 3, kBytes = kSteps * 2 * amx::kTileBytes;
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

TEST(emulated_expansion_equals_the_processors) {
  if (amx::kImplementation.missing() != nullptr) return;
  Random random(22);
  constexpr int64_t kSteps = 5, kStep = 2 * amx::kTileBytes;
  Buffer<uint8_t> bits(128);
  for (int64_t i = 0; i < bits.size; ++i) bits[i] = static_cast<uint8_t>(random.next());
  Lines<int8_t> out(kSteps * kStep), emulated(kSteps * kStep);
  const auto same = [&] { return std::equal(out.data, out.data + kSteps * kStep, emulated.data); };
  amx::Expansion::row(bits.get(), kSteps, out.data);
  test::EmulatedExpansion::row(bits.get(), kSteps, emulated.data);
  CHECK(same(), "rows");
  for (int valid = 0; valid < 256; ++valid) {
    amx::Expansion::part_of_row(bits.get(), static_cast<uint8_t>(valid), out.data);
    test::EmulatedExpansion::part_of_row(bits.get(), static_cast<uint8_t>(valid), emulated.data);
    CHECK(same(), "part of a row, " + std::to_string(valid));
  }
  amx::Expansion::weights(bits.get(), out.data);
  test::EmulatedExpansion::weights(bits.get(), emulated.data);
  CHECK(same(), "weights");
}

#endif

}  // namespace
}  // namespace stompp
