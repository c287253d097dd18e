// A tile's rows of bits, copied to shared memory a 16-byte chunk at a time.
#pragma once

#include "cuda/product/product.h"

namespace stompp::cuda {

struct alignas(16) Chunk {
  uint32_t words[kChunkWords];
};

__device__ inline uint32_t divide(uint32_t n, const Divider& by) {
  return by.divisor == 1 ? n : multiply_high(n, by.multiplier) >> by.shift;
}

// The taps [y0, y1) x [x0, x1) of a row that lie inside the input.
struct TapRectangle {
  int y0, y1, x0, x1;
};

__device__ inline void clip_axis(int start, int dilation, int size, int limit, int* begin, int* end) {
  *begin = 0;
  *end = size;
  while (*begin < size && start + *begin * dilation < 0) ++*begin;
  while (*end > *begin && start + (*end - 1) * dilation >= limit) --*end;
}

// A row of the product, taken apart once.
struct Row {
  const uint32_t* base;  // matrix: the row; convolution: the image; null where there is no such row
  int y, x;              // of the input pixel that tap (0, 0) reads

  __device__ static Row at(const Rows& rows, int m) {
    if (m >= rows.count) return {nullptr, 0, 0};
    if (rows.is_matrix) return {rows.x + static_cast<int64_t>(m) * rows.pixel_words, 0, 0};
    const int image = static_cast<int>(divide(m, rows.image_pixels));
    const int pixel = m - image * static_cast<int>(rows.image_pixels.divisor);
    const int oh = static_cast<int>(divide(pixel, rows.out_width));
    const int ow = pixel - oh * static_cast<int>(rows.out_width.divisor);
    const int64_t first = static_cast<int64_t>(image) * rows.height * rows.width * rows.pixel_words;
    return {rows.x + first, oh * rows.stride_h - rows.padding_h, ow * rows.stride_w - rows.padding_w};
  }

  __device__ TapRectangle inside(const Rows& rows) const {
    TapRectangle taps;
    clip_axis(y, rows.dilation_h, rows.kernel_h, rows.height, &taps.y0, &taps.y1);
    clip_axis(x, rows.dilation_w, rows.kernel_w, rows.width, &taps.x0, &taps.x1);
    return taps;
  }
};

// Where word `word` of a row lies in x, for a group that begins on a word; null where it lies outside.
__device__ inline const uint32_t* find_word(const Rows& rows, const Row& row, int group, int word) {
  if (row.base == nullptr || word >= rows.words) return nullptr;
  if (rows.is_matrix) return row.base + word;
  const int tap = static_cast<int>(divide(word, rows.tap_words));
  const int within = word - tap * static_cast<int>(rows.tap_words.divisor);
  const int ty = static_cast<int>(divide(tap, rows.tap_columns));
  const int y = row.y + ty * rows.dilation_h;
  const int x = row.x + (tap - ty * rows.kernel_w) * rows.dilation_w;
  if (y < 0 || y >= rows.height || x < 0 || x >= rows.width) return nullptr;
  const int first = rows.granule == 0 ? 0 : group * static_cast<int>(rows.tap_words.divisor);
  return row.base + (static_cast<int64_t>(y) * rows.width + x) * rows.pixel_words + first + within;
}

// A word of a group that begins between words, which find_word found: its bits, shifted to the right place.
__device__ inline uint32_t shifted_word(const Rows& rows, const uint32_t* found, int group, int word) {
  const int within = word - static_cast<int>(divide(word, rows.tap_words)) * static_cast<int>(rows.tap_words.divisor);
  const int64_t bit = static_cast<int64_t>(group) * rows.group_channels;
  const int64_t first = bit / kWordBits;
  const int shift = static_cast<int>(bit % kWordBits), left = rows.group_channels - within * kWordBits;
  uint32_t bits = found[first] >> shift;
  if (shift != 0 && first + within + 1 < rows.pixel_words) bits |= found[first + 1] << (kWordBits - shift);
  return left < kWordBits ? bits & ((1u << left) - 1u) : bits;
}

// Starts the copy of a chunk of a row, words [word, word + 4), to `to`, granule by granule: mostly at once.
__device__ inline void copy_chunk(const Rows& rows, const Row& row, int group, int word, uint32_t* to) {
  const int granule = rows.granule == 0 ? 1 : rows.granule;
#pragma unroll 1
  for (int i = 0; i < kChunkWords; i += granule) {
    const uint32_t* found = find_word(rows, row, group, word + i);
    const bool exists = found != nullptr;
    const uint32_t* from = exists ? found : rows.x;
    if (rows.granule == 4)
      copy_async<4 * kWordBytes>(to + i, from, exists);
    else if (rows.granule == 2)
      copy_async<2 * kWordBytes>(to + i, from, exists);
    else if (rows.granule == 1)
      copy_async<kWordBytes>(to + i, from, exists);
    else
      store_to_shared(to + i, exists ? shifted_word(rows, found, group, word + i) : 0u);
  }
}

// Rows of a matrix whose chunks are aligned.
inline bool is_plain(const Product& p) { return p.rows.is_matrix && p.rows.granule == kChunkWords; }

// The share of a tile's copies that a thread has. kPlain: a pointer a chunk is all that they need, see is_plain.
template <class T, bool kPlain>
struct RowCopies {
  const Rows& rows;
  int group, thread;
  Row found[T::kRowChunks];
  const uint32_t* chunks[T::kRowChunks];  // kPlain: at step 0; null for a row that does not exist

  __device__ RowCopies(const Rows& rows_, int group_, int thread_) : rows(rows_), group(group_), thread(thread_) {}

  // Where chunk `index` of a stage belongs: its block, its row, and its first word there.
  __device__ static int block_of(int index) { return index / (T::kRows * 4); }
  __device__ static int row_of(int index) { return index / 4 % T::kRows; }
  __device__ static int place_of(int index) {
    const int row = row_of(index);
    return block_of(index) * T::kRowWords + row * kBlockWords + swizzle(row, index % 4) * kChunkWords;
  }

  // Goes to the tile that begins with this row.
  __device__ void find(int first_row) {
#pragma unroll
    for (int i = 0; i < T::kRowChunks; ++i) {
      const int index = thread + i * T::kThreads;
      found[i] = Row::at(rows, first_row + row_of(index));
      const int at = block_of(index) * kBlockWords + index % 4 * kChunkWords;
      chunks[i] = found[i].base == nullptr ? nullptr : found[i].base + at;
    }
  }

  __device__ void start(int step, uint32_t* to) const {
#pragma unroll
    for (int i = 0; i < T::kRowChunks; ++i) {
      const int index = thread + i * T::kThreads;
      const int word = (step * T::kWarpsK + block_of(index)) * kBlockWords + index % 4 * kChunkWords;
      uint32_t* at = to + place_of(index);
      if constexpr (kPlain) {
        const bool exists = chunks[i] != nullptr && word < rows.words;
        copy_async<16>(at, exists ? chunks[i] + step * T::kWarpsK * kBlockWords : rows.x, exists);
      } else {
        copy_chunk(rows, found[i], group, word, at);
      }
    }
  }

  // Adds the ones in the chunks that this thread copied itself.
  __device__ void count(const uint32_t* from, int (&counts)[T::kRowChunks]) const {
#pragma unroll
    for (int i = 0; i < T::kRowChunks; ++i) {
      const Chunk chunk = *reinterpret_cast<const Chunk*>(from + place_of(thread + i * T::kThreads));
      for (int w = 0; w < kChunkWords; ++w) counts[i] += count_ones(chunk.words[w]);
    }
  }
};

}  // namespace stompp::cuda
