// Pooling of floats, means and softmax.
#include <algorithm>
#include <cmath>

#include "runtime/steps/geometry.h"

namespace stompp::runtime {
namespace {

struct Bounds {
  Range lines, columns;

  double area() const { return static_cast<double>(lines.size() * columns.size()); }
};

// Plans what makes each pixel of the result, C values side by side, from a window of the input that may reach beyond
// it. `bounds` gives that of an output pixel, `pool` reads it: pool(image, bounds, out).
template <class BoundsOf, class Pool>
Outcome plan_windows(Planning& p, const Value& x, int64_t height, int64_t width, const BoundsOf& bounds,
                     const Pool& pool) {
  if (height < 1 || width < 1) return bad_argument("the window reaches beyond the padded input");
  const Pixels in = pixels_of(x);
  Value y;
  STOMPP_TRY(p.make(Value::Kind::kFloats, shape_of({in.batch, in.channels, height, width}), &y));
  p.run([=](const Frame& f) {
    const float* from = f.floats(x);
    float* to = f.floats(y);
    f.each(in.batch * height * width, in.channels * 9, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        pool(from + i / width / height * in.height * in.width * in.channels, bounds(i / width % height, i % width),
             to + i * in.channels);
    });
    return Status::ok();
  });
  return {};
}

Outcome plan_max_pool(Planning& p) {
  Value x;
  Window w;
  STOMPP_TRY(p.images("input", &x));
  STOMPP_TRY(window_of(p, &w));
  if (p.flag("return_indices", false)) return unsupported("indices of a pooling");
  const Pixels in = pixels_of(x);
  const auto bounds = [=](int64_t line, int64_t column) {
    return Bounds{w.height.at(line, in.height), w.width.at(column, in.width)};
  };
  const auto largest = [=](const float* image, const Bounds& b, float* out) {
    std::fill_n(out, in.channels, -INFINITY);
    for (int64_t line = b.lines.begin; line < b.lines.end; line += b.lines.step)
      for (int64_t column = b.columns.begin; column < b.columns.end; column += b.columns.step) {
        if (line < 0 || column < 0) continue;
        const float* pixel = image + (line * in.width + column) * in.channels;
        for (int64_t c = 0; c < in.channels; ++c)
          out[c] = pixel[c] > out[c] || pixel[c] != pixel[c] ? pixel[c] : out[c];
      }
  };
  return plan_windows(p, x, w.height.count(in.height, w.ceil_mode), w.width.count(in.width, w.ceil_mode), bounds,
                      largest);
}

// Plans averages whose divisors `divisor` gives.
template <class BoundsOf, class Divisor>
Outcome plan_averages(Planning& p, const Value& x, int64_t height, int64_t width, const BoundsOf& bounds,
                      const Divisor& divisor) {
  const Pixels in = pixels_of(x);
  return plan_windows(p, x, height, width, bounds, [=](const float* image, const Bounds& b, float* out) {
    constexpr int64_t kChannels = 64;
    const Range lines = b.lines.inside(in.height), columns = b.columns.inside(in.width);
    for (int64_t first = 0; first < in.channels; first += kChannels) {
      const int64_t count = std::min(kChannels, in.channels - first);
      double sums[kChannels] = {};
      for (int64_t line = lines.begin; line < lines.end; ++line)
        for (int64_t column = columns.begin; column < columns.end; ++column) {
          const float* pixel = image + (line * in.width + column) * in.channels + first;
          for (int64_t c = 0; c < count; ++c) sums[c] += pixel[c];
        }
      for (int64_t c = 0; c < count; ++c) out[first + c] = static_cast<float>(sums[c] / divisor(b));
    }
  });
}

double area(const Bounds& b) { return b.area(); }

Outcome plan_avg_pool(Planning& p) {
  Value x;
  Window w;
  STOMPP_TRY(p.images("input", &x));
  STOMPP_TRY(window_of(p, &w));
  const Pixels in = pixels_of(x);
  const bool counts_padding = p.flag("count_include_pad", true);
  if (p.find("divisor_override") != nullptr) return unsupported("a divisor of its own");
  const auto bounds = [=](int64_t line, int64_t column) {
    return Bounds{w.height.at(line, in.height + w.height.padding), w.width.at(column, in.width + w.width.padding)};
  };
  const auto divisor = [=](const Bounds& b) {
    return counts_padding ? b.area() : Bounds{b.lines.inside(in.height), b.columns.inside(in.width)}.area();
  };
  return plan_averages(p, x, w.height.count(in.height, w.ceil_mode), w.width.count(in.width, w.ceil_mode), bounds,
                       divisor);
}

Outcome plan_adaptive_avg_pool(Planning& p) {
  Value x;
  STOMPP_TRY(p.images("input", &x));
  const Pixels in = pixels_of(x);
  int64_t height = 0, width = 0;
  STOMPP_TRY(p.own("output_size").pair("output_size", 1, &height, &width));
  const auto share = [](int64_t i, int64_t size, int64_t count) {
    return Range{i * size / count, ceil_div((i + 1) * size, count), 1};
  };
  const auto bounds = [=](int64_t line, int64_t column) {
    return Bounds{share(line, in.height, height), share(column, in.width, width)};
  };
  return plan_averages(p, x, height, width, bounds, area);
}

// Means over both sides of images, and over the last dimension of others.
Outcome plan_mean(Planning& p) {
  Value x;
  STOMPP_TRY(p.floats("input", &x));
  std::vector<int64_t> dims = p.own("dim").integers("dim");
  for (int64_t& dim : dims) dim += dim < 0 ? x.shape.rank : 0;
  std::sort(dims.begin(), dims.end());
  const bool keep = p.flag("keepdim", false), images = x.shape.rank == 4 && dims == std::vector<int64_t>{2, 3};
  if (!images && (x.shape.rank == 4 || dims != std::vector<int64_t>{x.shape.rank - 1}))
    return unsupported("a mean over other dimensions than both sides of images, or the last");
  // Rows are the pixels of an image that is one pixel high.
  Value as_images = x;
  if (!images) as_images.shape = shape_of({x.rows(), 1, 1, x.last()});
  const Pixels in = pixels_of(as_images);
  const auto whole = [=](int64_t, int64_t) { return Bounds{{0, in.height, 1}, {0, in.width, 1}}; };
  STOMPP_TRY(plan_averages(p, as_images, 1, 1, whole, area));
  Shape& shape = p.given_shape();
  if (!images) {
    shape = x.shape;
    shape.sizes[shape.rank - 1] = 1;
    if (!keep) --shape.rank;
  } else if (!keep) {
    shape = shape_of({in.batch, in.channels});
  }
  return {};
}

Outcome plan_softmax(Planning& p) {
  Value x, y;
  int dim = 0;
  STOMPP_TRY(p.floats("input", &x));
  STOMPP_TRY(p.dimension("dim", -1, x.shape.rank, &dim));
  if (p.find("dim") == nullptr || dim != x.shape.rank - 1 || x.shape.rank == 4)
    return unsupported("a softmax along another dimension than the last, or of images");
  STOMPP_TRY(p.overwriting(x, x.shape, &y));
  p.run([=](const Frame& f) {
    const int64_t K = x.last();
    f.each(x.rows(), K, [=](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        const float* from = f.floats(x) + row * K;
        float* to = f.floats(y) + row * K;
        const float most = *std::max_element(from, from + K);
        double sum = 0;
        for (int64_t k = 0; k < K; ++k) sum += to[k] = std::exp(from[k] - most);
        for (int64_t k = 0; k < K; ++k) to[k] = static_cast<float>(to[k] / sum);
      }
    });
    return Status::ok();
  });
  return {};
}

#define POOL "kernel_size:kernel stride:kernel|none padding:padding "
#define CALL "input:tensor kernel_size:kernel stride=kernel|none padding=padding "
constexpr const char *kX = "input:tensor", *kMean = "input:tensor dim:dims keepdim=bool";

constexpr Operation kOperations[] = {
    {" MaxPool2d ", POOL "dilation:kernel return_indices:bool ceil_mode:bool", kX, plan_max_pool},
    {" F.max_pool2d ", nullptr, CALL "dilation=kernel ceil_mode=bool return_indices=bool", plan_max_pool},
    {" torch.max_pool2d ", nullptr, CALL "dilation=kernel ceil_mode=bool", plan_max_pool},
    {" AvgPool2d ", POOL "ceil_mode:bool count_include_pad:bool divisor_override:size|none", kX, plan_avg_pool},
    {" F.avg_pool2d ", nullptr, CALL "ceil_mode=bool count_include_pad=bool divisor_override=size|none", plan_avg_pool},
    {" AdaptiveAvgPool2d ", "output_size:out", kX, plan_adaptive_avg_pool},
    {" F.adaptive_avg_pool2d ", nullptr, "input:tensor output_size:out", plan_adaptive_avg_pool},
    {" torch.mean .mean ", nullptr, kMean, plan_mean},
    {" Softmax ", "dim:dim|none", kX, plan_softmax},
    {" F.softmax torch.softmax .softmax ", nullptr, "input:tensor dim:dim", plan_softmax},
};

}  // namespace

OperationList pooling_operations() { return {kOperations, std::size(kOperations)}; }

}  // namespace stompp::runtime
