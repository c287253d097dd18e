// Layers with float weights. A convolution is the core's, and a linear layer one of single pixels.
#include <cmath>

#include "core/float_conv/conv2d_float.h"
#include "runtime/steps/geometry.h"

namespace stompp::runtime {
namespace {

struct FloatLayer : Prepared {
  WeightShape shape = {};
  const float* panels = nullptr;                    // as FloatConv has them; of several groups [O][taps][in_channels]
  const float *first = nullptr, *second = nullptr;  // scale and bias, or low and high limits; or null
  bool fused = true, words = false, bits = false;
  bool exact = false;  // signs may follow that are to be Python's
};

// Brings weights [O, I, kh, kw] into the order that is read.
Outcome order_weight(const std::vector<float>& weight, FloatLayer* layer) {
  const WeightShape& w = layer->shape;
  const int64_t K = w.K(), taps = w.taps(), panel = w.groups == 1 ? kPanelOutputs : 1;
  const int64_t count = round_up(w.out_channels, panel) * K;
  if (count > kMostBytes / 4) return unsupported("a weight that is too large");
  std::vector<float> panels(static_cast<size_t>(count));
  for (int64_t n = 0; n < w.out_channels; ++n)
    for (int64_t k = 0; k < K; ++k) {
      const int64_t at = ((n / panel) * K + k % taps * w.in_channels + k / taps) * panel + n % panel;
      panels[static_cast<size_t>(at)] = weight[static_cast<size_t>(n * K + k)];
    }
  layer->panels = layer->keep(std::move(panels));
  return {};
}

// Reads the shape of a weight from the settings of a linear layer or a convolution.
Outcome read_shape(Module& m, WeightShape* w) {
  const Arguments& s = m.settings;
  if (m.is_linear()) {
    *w = {s.integer("out_features", 0), s.integer("in_features", 0), 1, 1, 1};
    m.weight = shape_of({w->out_channels, w->in_channels});
  } else {
    *w = {s.integer("out_channels", 0), s.integer("in_channels", 0), 1, 1, s.integer("groups", 1)};
    STOMPP_TRY(s.pair("kernel_size", 1, &w->kernel_h, &w->kernel_w));
    if (w->in_channels % w->groups != 0) return bad_file("groups must divide the input channels");
    w->in_channels /= w->groups;
    m.weight = shape_of({w->out_channels, w->in_channels, w->kernel_h, w->kernel_w});
  }
  return of(check_shape(*w), STOMPP_BAD_FILE);
}

Outcome prepare_layer(Module& m) {
  auto layer = std::make_shared<FloatLayer>();
  m.prepared = layer;
  STOMPP_TRY(read_shape(m, &layer->shape));
  if (!m.is_linear() &&
      (!m.settings.find("padding_mode")->is_text("zeros") || m.settings.find("padding")->is_text("same")))
    return unsupported("padding 'same', or with other values than zeros");
  std::vector<float> weight;
  STOMPP_TRY(m.take("weight", sizes_of(m.weight), &weight));
  if (m.settings.flag("bias", false)) {
    const int64_t N = layer->shape.out_channels;
    STOMPP_TRY(m.keep("bias", {N}, layer.get(), &layer->second));
    layer->first = layer->keep(std::vector<float>(static_cast<size_t>(N), 1.0f));
  }
  return order_weight(weight, layer.get());
}

Outcome prepare_float_conv(Module& m) {
  auto layer = std::make_shared<FloatLayer>();
  m.prepared = layer;
  STOMPP_TRY(read_shape(m, &layer->shape));
  const WeightShape& w = layer->shape;
  const int64_t N = w.out_channels;
  STOMPP_TRY(m.keep("panels", {ceil_div(N, kPanelOutputs), w.K(), kPanelOutputs}, layer.get(), &layer->panels));
  const std::string& writes = m.settings.find("writes")->text;
  layer->exact = true;
  layer->bits = writes == "bits";
  layer->words = m.settings.find("reads")->text == "bits";
  layer->fused = m.settings.flag("fused", false);
  if (writes == "floats") return {};
  STOMPP_TRY(m.keep(layer->bits ? "low" : "scale", {N}, layer.get(), &layer->first));
  return m.keep(layer->bits ? "high" : "bias", {N}, layer.get(), &layer->second);
}

// A convolution of several groups, or of any, without the core's order: one multiplication after the other.
void grouped_conv2d(const FloatConv& conv, const Conv2dShape& s, const WeightShape& w, int64_t begin, int64_t end) {
  const int64_t height = s.out_height(w), width = s.out_width(w);
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    const int64_t top = pixel / width % height * s.stride_h - s.padding_h,
                  left = pixel % width * s.stride_w - s.padding_w;
    for (int64_t n = 0; n < w.out_channels; ++n) {
      float sum = 0;
      const float* weight = conv.weights + n * w.K();
      for (int64_t tap = 0; tap < w.taps(); ++tap, weight += w.in_channels) {
        const int64_t y = top + tap / w.kernel_w * s.dilation_h, x = left + tap % w.kernel_w * s.dilation_w;
        if (y < 0 || y >= s.height || x < 0 || x >= s.width) continue;
        const float* from = conv.x + ((pixel / width / height * s.height + y) * s.width + x) * s.channels +
                            n / w.group_outputs() * w.in_channels;
        for (int64_t c = 0; c < w.in_channels; ++c) sum += from[c] * weight[c];
      }
      conv.out[pixel * w.out_channels + n] = sum + (conv.bias == nullptr ? 0 : conv.bias[n]);
    }
  }
}

Outcome plan_layer(Planning& p, const Value& x, const Conv2dShape& shape, const Shape& out) {
  const FloatLayer& layer = p.prepared<FloatLayer>();
  Value y;
  STOMPP_TRY(p.make(layer.bits ? Value::Kind::kBits : Value::Kind::kFloats, out, &y));
  p.run([=, &layer](const Frame& f) {
    const WeightShape& w = layer.shape;
    FloatConv conv = {};
    if (layer.words)
      conv.words = f.words(x);
    else
      conv.x = f.floats(x);
    conv.weights = layer.panels;
    conv.fused = layer.fused;
    conv.unfused_sums = !layer.exact;
    if (layer.bits) {
      conv.limits = {layer.first, layer.second};
      conv.out_words = f.words(y);
    } else {
      conv.scale = layer.first;
      conv.bias = layer.second;
      conv.out = f.floats(y);
    }
    if (w.groups == 1) return conv2d_float(conv, shape, w, f.pool);
    f.each(shape.batch * shape.out_height(w) * shape.out_width(w), w.out_channels * w.K(),
           [&](int64_t begin, int64_t end) { grouped_conv2d(conv, shape, w, begin, end); });
    return Status::ok();
  });
  return {};
}

Outcome plan_conv(Planning& p) {
  const FloatLayer& layer = p.prepared<FloatLayer>();
  const WeightShape& w = layer.shape;
  Value x;
  STOMPP_TRY(layer.words ? p.bits("input", &x) : p.images("input", &x));
  if (x.shape.rank != 4) return bad_argument("the input is no image");
  const int64_t* s = x.shape.sizes;
  Conv2dShape shape;
  STOMPP_TRY(conv2d_shape(p, layer.words ? Pixels{s[0], s[1], s[2], s[3]} : pixels_of(x), w, 0, &shape));
  const int64_t height = shape.out_height(w), width = shape.out_width(w);
  return plan_layer(p, x, shape,
                    layer.bits ? shape_of({shape.batch, height, width, w.out_channels})
                               : shape_of({shape.batch, w.out_channels, height, width}));
}

Outcome plan_linear(Planning& p) {
  const WeightShape& w = p.prepared<FloatLayer>().shape;
  Value x;
  STOMPP_TRY(p.floats("input", &x));
  if (x.shape.rank == 4) return unsupported("a linear layer on images");
  if (x.last() != w.in_channels)
    return bad_argument("the input has " + std::to_string(x.last()) + " features, the weight " +
                        std::to_string(w.in_channels));
  Shape out = x.shape;
  out.sizes[out.rank - 1] = w.out_channels;
  return plan_layer(p, x, {1, 1, x.rows(), w.in_channels, 1, 1, 0, 0, 1, 1, 0}, out);
}

// What is done to each value of a channel: x * first + second, or a slope below zero.
struct PerChannel : Prepared {
  int64_t channels = 0;
  const float *first = nullptr, *second = nullptr;
};

Outcome prepare_batch_norm(Module& m) {
  auto own = std::make_shared<PerChannel>();
  const int64_t C = own->channels = m.settings.integer("num_features", 0);
  const double eps = m.settings.number("eps", 0);
  m.prepared = own;
  if (!m.settings.flag("track_running_stats", false)) return unsupported("statistics of the batch");
  std::vector<float> mean, var, weight, bias;
  STOMPP_TRY(m.take("running_mean", {C}, &mean));
  STOMPP_TRY(m.take("running_var", {C}, &var));
  if (m.settings.flag("affine", false)) {
    STOMPP_TRY(m.take("weight", {C}, &weight));
    STOMPP_TRY(m.take("bias", {C}, &bias));
  }
  STOMPP_TRY(m.drop("num_batches_tracked", {}, Tensor::Type::kInt64));
  std::vector<float> first, second;
  for (size_t c = 0; c < mean.size(); ++c) {
    const float inverse = static_cast<float>(1 / std::sqrt(static_cast<double>(var[c]) + eps));
    first.push_back(weight.empty() ? inverse : inverse * weight[c]);
    second.push_back((bias.empty() ? 0.0f : bias[c]) - mean[c] * first[c]);
  }
  own->first = own->keep(std::move(first));
  own->second = own->keep(std::move(second));
  return {};
}

Outcome prepare_prelu(Module& m) {
  auto own = std::make_shared<PerChannel>();
  own->channels = m.settings.integer("num_parameters", 0);
  m.prepared = own;
  return m.keep("weight", {own->channels}, own.get(), &own->first);
}

// Plans f(x, constants of its channel) for [N, C] and images.
template <class F>
Outcome plan_per_channel(Planning& p, bool one_for_all, const F& function) {
  const PerChannel& own = p.prepared<PerChannel>();
  Value x, y;
  STOMPP_TRY(p.floats("input", &x));
  if (x.shape.rank != 2 && x.shape.rank != 4) return unsupported("channels of values that are no rows and no images");
  const int64_t C = x.shape.sizes[1], each = one_for_all && own.channels == 1 ? 0 : 1;
  if (each != 0 && C != own.channels)
    return bad_argument("the input has " + std::to_string(C) + " channels, the layer " + std::to_string(own.channels));
  STOMPP_TRY(p.overwriting(x, x.shape, &y));
  p.run([=, &own](const Frame& f) {
    const float* from = f.floats(x);
    float* to = f.floats(y);
    f.each(product(x.shape) / C, C, [=, a = own.first, b = own.second](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t c = 0; c < C; ++c) to[row * C + c] = function(from[row * C + c], a[c * each], b, c * each);
    });
    return Status::ok();
  });
  return {};
}

Outcome plan_batch_norm(Planning& p) {
  Value x;
  STOMPP_TRY(p.floats("input", &x));
  if (x.shape.rank != (p.module->type == "BatchNorm2d" ? 4 : 2)) return unsupported("a BatchNorm of other dimensions");
  return plan_per_channel(p, false,
                          [](float v, float scale, const float* shift, int64_t c) { return v * scale + shift[c]; });
}

Outcome plan_prelu(Planning& p) {
  return plan_per_channel(p, true, [](float v, float slope, const float*, int64_t) { return v > 0 ? v : v * slope; });
}

#define CONV "in_channels:size out_channels:size kernel_size:kernel stride:kernel "
constexpr const char* kConv = CONV "padding:padding|same dilation:kernel groups:size bias:bool padding_mode:mode";
constexpr const char* kNorm = "num_features:size eps:number momentum:number|none affine:bool track_running_stats:bool";

constexpr Operation kOperations[] = {
    {" FloatConv2d ", CONV "padding:padding dilation:kernel reads:reads writes:gives fused:bool bfloat16=bool",
     "input:tensor", plan_conv, prepare_float_conv},
    {" Conv2d PrepackedConv2d ", kConv, "input:tensor", plan_conv, prepare_layer},
    {" Linear BFloat16Linear ", "in_features:size out_features:size bias:bool", "input:tensor", plan_linear,
     prepare_layer},
    {" BatchNorm1d BatchNorm2d ", kNorm, "input:tensor", plan_batch_norm, prepare_batch_norm},
    {" PReLU ", "num_parameters:size", "input:tensor", plan_prelu, prepare_prelu},
};

}  // namespace

OperationList float_layer_operations() { return {kOperations, std::size(kOperations)}; }

}  // namespace stompp::runtime
