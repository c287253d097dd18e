#include "core/product/small_groups.h"

#include "core/base/scratch.h"
#include "core/base/workers.h"
#include "core/product/bit_planes.h"
#include "core/product/kernels.h"
#include "core/product/taps.h"

namespace stompp {
namespace {

constexpr int64_t kLimitEntries = 16;
constexpr int64_t kMaxGroup = 8;

// What every thread reads.
struct SmallGroups {
  const uint32_t* const* turns;  // of the input, [g]
  const Conv2dShape& shape;
  const WeightShape& kernel;
  const PlaneKernels& planes;
  const ProductKernels& kernels;
  const Epilogue& epilogue;
  int64_t out_height, out_width;
  int64_t words;            // of a pixel
  int64_t repeats;          // pixels whose weights stand side by side
  const uint32_t* weights;  // [g][taps][repeats][words]
  const uint32_t* flips;    // [repeats][words], for the threshold epilogue only
  const uint32_t* valid;    // [repeats][words]: bits that are channels

  int64_t products() const { return kernel.K(); }  // of an output
  int64_t tasks() const { return shape.batch * out_height; }
};

// Pixels of one line with the same valid taps, and a range of their words: all of them, or some of a single pixel's.
struct Part {
  int64_t ow, pixels;
  int64_t word, words;

  int64_t all_words() const { return pixels * words; }
};

// One thread's memory and work. A task is a line of output pixels.
class Worker {
 public:
  explicit Worker(const SmallGroups& conv);
  bool failed() const { return memory_ == nullptr || x_ == nullptr || dots_ == nullptr; }
  void run(int64_t line);

 private:
  void finish_part(const Part& part);
  int64_t point_at_taps(const Part& part);
  void copy_tap(const Part& part, const uint32_t* first, uint32_t* out) const;
  void fill_padding(const Part& part, uint32_t* out) const;
  const uint32_t* limits(int64_t products, const Part& part);
  void fill_limits(int64_t products, const Part& part, uint32_t* out) const;
  void write_bits(const Part& part, const uint32_t* limits);

  struct LimitEntry {
    int64_t products = -1, word = -1;
  };

  const SmallGroups& c_;
  const int plane_count_;
  const int64_t plane_words_;  // of all planes
  Scratch<uint32_t> memory_;
  Scratch<const uint32_t*> x_;  // [products], then the weights' [products]
  Scratch<int32_t> dots_;
  uint32_t *planes_, *at_least_, *limits_, *copies_;
  LimitEntry entries_[kLimitEntries];
  int64_t next_entry_ = 0;
  int64_t image_ = 0, oh_ = 0, top_ = 0;
  ValidTaps valid_ = {};
};

Worker::Worker(const SmallGroups& conv)
    : c_(conv),
      plane_count_(planes_for(conv.products() + 1)),  // limits go up to that: never
      plane_words_(plane_count_ * kPlaneWords) {
  const int64_t limit_words = kLimitEntries * c_.epilogue.threshold_sets() * plane_words_, products = c_.products();
  const bool copies = c_.shape.stride_w > 1 || c_.shape.padding_value != 0;
  const int64_t all = plane_words_ + 2 * kPlaneWords + limit_words + (copies ? products * kPlaneWords : 0);
  memory_ = scratch_of<uint32_t>(all);
  x_ = scratch_of<const uint32_t*>(2 * products);
  dots_ = scratch_of<int32_t>(kPlaneWords * kPanelOutputs);
  planes_ = memory_.get();
  at_least_ = planes_ + plane_words_;
  limits_ = at_least_ + 2 * kPlaneWords;
  copies_ = limits_ + limit_words;
}

void Worker::run(int64_t line) {
  const Conv2dShape& shape = c_.shape;
  const int64_t kernel_w = c_.kernel.kernel_w;
  image_ = line / c_.out_height;
  oh_ = line % c_.out_height;
  top_ = oh_ * shape.stride_h - shape.padding_h;
  clip_taps(top_, shape.dilation_h, c_.kernel.kernel_h, shape.height, &valid_.h_begin, &valid_.h_end);
  for (int64_t ow = 0; ow < c_.out_width;) {
    const int64_t left = ow * shape.stride_w - shape.padding_w;
    clip_taps(left, shape.dilation_w, kernel_w, shape.width, &valid_.w_begin, &valid_.w_end);
    int64_t pixels = 1;
    if (valid_.w_end - valid_.w_begin == kernel_w) {
      const int64_t most = c_.out_width - ow < c_.repeats ? c_.out_width - ow : c_.repeats;
      pixels = whole_windows(left, shape.stride_w, shape.dilation_w, kernel_w, shape.width, most);
    }
    for (int64_t word = 0; word < c_.words; word += kPlaneWords)
      finish_part({ow, pixels, word, c_.words - word < kPlaneWords ? c_.words - word : kPlaneWords});
    ow += pixels;
  }
}

void Worker::finish_part(const Part& part) {
  const int64_t count = point_at_taps(part);
  c_.planes.count_taps({x_.get(), x_.get() + c_.products(), count, part.all_words(), plane_count_, planes_});
  if (c_.epilogue.kind == Epilogue::Kind::kThreshold) return write_bits(part, limits(count, part));
  c_.planes.planes_to_dots(planes_, plane_count_, part.all_words(), static_cast<int32_t>(count), dots_.get());
  const int64_t n = part.word * kPanelOutputs, left = c_.shape.channels - n, whole = part.words * kPanelOutputs;
  const int64_t row = (image_ * c_.out_height + oh_) * c_.out_width + part.ow;
  finish(c_.epilogue, c_.kernels, {row, part.pixels, n, left < whole ? left : whole, dots_.get(), whole});
}

// Returns how many words' differences are to be counted: a tap of zero padding adds nothing.
int64_t Worker::point_at_taps(const Part& part) {
  const Conv2dShape& shape = c_.shape;
  const int64_t first_pixel = (image_ * shape.height + top_) * shape.width + part.ow * shape.stride_w - shape.padding_w;
  const int64_t row_step = shape.dilation_h * shape.width * c_.words, tap_step = shape.dilation_w * c_.words;
  const int64_t weight_step = c_.repeats * c_.words;
  const bool side_by_side = shape.stride_w == 1 || part.pixels == 1;
  const uint32_t* weights = c_.weights + part.word;
  int64_t count = 0;
  for (int64_t turn = 0; turn < c_.kernel.in_channels; ++turn) {
    // Where the first tap lies, or would lie if it were inside.
    const int64_t origin = first_pixel * c_.words + part.word;
    for (int64_t h = 0; h < c_.kernel.kernel_h; ++h)
      for (int64_t w = 0; w < c_.kernel.kernel_w; ++w, weights += weight_step) {
        const bool inside = h >= valid_.h_begin && h < valid_.h_end && w >= valid_.w_begin && w < valid_.w_end;
        if (!inside && shape.padding_value == 0) continue;
        uint32_t* copy = copies_ + count * kPlaneWords;
        const uint32_t* tap = copy;
        if (!inside) {
          fill_padding(part, copy);
        } else {
          const uint32_t* first = c_.turns[turn] + origin + h * row_step + w * tap_step;
          if (side_by_side) tap = first;
          if (!side_by_side) copy_tap(part, first, copy);
        }
        x_[c_.products() + count] = weights;
        x_[count++] = tap;
      }
  }
  return count;
}

void Worker::copy_tap(const Part& part, const uint32_t* first, uint32_t* out) const {
  const int64_t step = c_.shape.stride_w * c_.words;
  for (int64_t i = 0; i < part.pixels; ++i, first += step)
    for (int64_t word = 0; word < part.words; ++word) *out++ = first[word];
}

void Worker::fill_padding(const Part& part, uint32_t* out) const {
  for (int64_t i = 0; i < part.pixels; ++i)
    for (int64_t word = part.word; word < part.word + part.words; ++word)
      *out++ = c_.shape.padding_value == -1 ? valid_bits(c_.shape.channels, word) : 0;
}

// Returns the limits of as many pixels as a part may have: dot < threshold exactly where the count is at least the
// limit.
const uint32_t* Worker::limits(int64_t products, const Part& part) {
  const int64_t size = c_.epilogue.threshold_sets() * plane_words_;
  for (int64_t i = 0; i < kLimitEntries; ++i)
    if (entries_[i].products == products && entries_[i].word == part.word) return limits_ + i * size;
  const int64_t entry = next_entry_++ % kLimitEntries;
  entries_[entry].products = products;
  entries_[entry].word = part.word;
  fill_limits(products, part, limits_ + entry * size);
  return limits_ + entry * size;
}

void Worker::fill_limits(int64_t products, const Part& part, uint32_t* out) const {
  const int64_t never = c_.products() + 1;
  for (int64_t set = 0; set < c_.epilogue.threshold_sets(); ++set, out += plane_words_) {
    const int32_t* thresholds = c_.epilogue.thresholds + set * c_.epilogue.N;
    for (int64_t word = 0; word < part.words; ++word) {
      uint32_t bits[kMaxPlanes] = {};
      const int64_t n = (part.word + word) * kWordBits;
      for (int64_t i = 0; i < kWordBits && n + i < c_.shape.channels; ++i) {
        // This is where products - 2 * count < threshold begins.
        const int64_t above = products - thresholds[n + i];
        const int64_t limit = above < 0 ? 0 : above / 2 + 1 > never ? never : above / 2 + 1;
        for (int p = 0; p < plane_count_; ++p) bits[p] |= static_cast<uint32_t>(limit >> p & 1) << i;
      }
      for (int p = 0; p < plane_count_; ++p) out[p * kPlaneWords + word] = bits[p];
    }
    for (int p = 0; p < plane_count_; ++p)
      for (int64_t i = part.words; i < c_.repeats * part.words; ++i)
        out[p * kPlaneWords + i] = out[p * kPlaneWords + i - part.words];
  }
}

void Worker::write_bits(const Part& part, const uint32_t* limits) {
  const Epilogue& e = c_.epilogue;
  for (int64_t set = 0; set < c_.epilogue.threshold_sets(); ++set)
    c_.planes.compare_planes(
        {planes_, limits + set * plane_words_, part.all_words(), plane_count_, at_least_ + set * kPlaneWords});
  // A part's words follow each other in the output: it has all words of its pixels, or one pixel.
  const int64_t at = ((image_ * c_.out_height + oh_) * c_.out_width + part.ow) * c_.words + part.word;
  const uint32_t* flips = c_.flips + part.word;
  const uint32_t* valid = c_.valid + part.word;
  uint32_t* __restrict out = static_cast<uint32_t*>(e.out) + at;
  if (e.residual_words == nullptr) {
    for (int64_t i = 0; i < part.all_words(); ++i) out[i] = (at_least_[i] ^ flips[i]) & valid[i];
    return;
  }
  const uint32_t* residual = e.residual_words + at;
  const uint32_t* second = at_least_ + kPlaneWords;
  for (int64_t i = 0; i < part.all_words(); ++i) {
    const uint32_t bits = (at_least_[i] & ~residual[i]) | (second[i] & residual[i]);
    out[i] = (bits ^ flips[i]) & valid[i];
  }
}

// Writes, for r = 1 .. g - 1, `count` words whose groups of g bits are rotated down by r, one after the other.
void rotate_groups(const uint32_t* x, int64_t count, int g, uint32_t* out, const Parallel& pool) {
  parallel_for(pool, count, 8192, [&](int64_t begin, int64_t end) {
    for (int r = 1; r < g; ++r) {
      // Bits o with o + r < g, in every group.
      const uint32_t low = 0xffffffffu / ((1u << g) - 1u) * ((1u << (g - r)) - 1u);
      uint32_t* __restrict to = out + (r - 1) * count;
      for (int64_t i = begin; i < end; ++i) to[i] = (x[i] >> r & low) | (x[i] << (g - r) & ~low);
    }
  });
}

}  // namespace

void pack_small_groups(const uint32_t* words, const WeightShape& shape, uint32_t* out, const Parallel& pool) {
  const int64_t taps = shape.taps(), g = shape.in_channels;
  parallel_for(pool, words_for(shape.out_channels), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t r = 0; r < g; ++r)
        for (int64_t tap = 0; tap < taps; ++tap) {
          uint32_t word = 0;
          for (int64_t bit = 0; bit < kWordBits && i * kWordBits + bit < shape.out_channels; ++bit) {
            const int64_t n = i * kWordBits + bit, channel = (n + r) % g;
            word |= (words[n * taps + tap] >> channel & 1u) << bit;
          }
          out[(i * g + r) * taps + tap] = word;
        }
  });
}

void unpack_small_groups(const uint32_t* packed, const WeightShape& shape, uint32_t* words, const Parallel& pool) {
  const int64_t taps = shape.taps(), g = shape.in_channels;
  parallel_for(pool, shape.out_channels, 512, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t tap = 0; tap < taps; ++tap) {
        uint32_t word = 0;
        for (int64_t r = 0; r < g; ++r)
          word |= (packed[(n / kWordBits * g + r) * taps + tap] >> (n % kWordBits) & 1u) << ((n + r) % g);
        words[n * taps + tap] = word;
      }
  });
}

Status small_groups_conv2d(const ProductKernels& kernels, const uint32_t* x, const Conv2dShape& shape,
                           const PackedWeight& weight, const Epilogue& epilogue, const Parallel& pool) {
  const PlaneKernels* planes = active_plane_kernels();
  if (planes == nullptr) return no_implementation();
  const WeightShape& kernel = weight.shape;
  const int64_t products = kernel.K(), words = words_for(shape.channels);
  const int64_t repeats = words < kPlaneWords ? kPlaneWords / words : 1;
  const int64_t row = repeats * words;
  const Scratch<uint32_t> memory = scratch_of<uint32_t>((products + 2) * row);
  if (memory == nullptr) return Status::error("out of memory");
  uint32_t* flips = memory.get() + products * row;
  uint32_t* valid = flips + row;
  const uint32_t* packed = reinterpret_cast<const uint32_t*>(weight.panels);  // [words][products]
  for (int64_t word = 0; word < words; ++word) {
    const uint32_t flip = epilogue.flip_words == nullptr ? 0 : epilogue.flip_words[word];
    for (int64_t i = word; i < row; i += words) {
      for (int64_t k = 0; k < products; ++k) memory[k * row + i] = packed[word * products + k];
      flips[i] = flip;
      valid[i] = valid_bits(shape.channels, word);
    }
  }

  const int64_t g = kernel.in_channels, all_words = shape.batch * shape.height * shape.width * words;
  Scratch<uint32_t> rotated;
  const uint32_t* turns[kMaxGroup] = {x};
  if (g > 1) {
    rotated = scratch_of<uint32_t>((g - 1) * all_words);
    if (rotated == nullptr) return Status::error("out of memory");
    for (int64_t r = 1; r < g; ++r) turns[r] = rotated.get() + (r - 1) * all_words;
    rotate_groups(x, all_words, static_cast<int>(g), rotated.get(), pool);
  }

  const SmallGroups conv = {
      turns, shape,   kernel,       *planes, kernels, epilogue, shape.out_height(kernel), shape.out_width(kernel),
      words, repeats, memory.get(), flips,   valid};
  return run_tasks<Worker>(conv, pool);
}

}  // namespace stompp
