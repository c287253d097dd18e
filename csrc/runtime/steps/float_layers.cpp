// Layers with float weights. A convolution is the core's, and a linear layer one of single pixels.
#include <cmath>

#include "core/float_conv/conv2d_float.h"
#include "runtime/steps/geometry.h"

namespace stompp::runtime {
namespace {

struct FloatLayer : Prepared {
  WeightShape shape = {};
  std::vector<float> panels;         // as FloatConv has them; of several groups [O][taps][in_channels]
  std::vector<float> first, second;  // scale and bias, or low and high limits; or empty
  bool fused = true, words = false, bits = false;
};

// Brings weights [O, I, kh, kw] into the order that is read.
void order_weight(const std::vector<float>& weight, FloatLayer* layer) {
  const WeightShape& w = layer->shape;
  const int64_t K = w.K(), taps = w.taps(), panel = w.groups == 1 ? kPanelOutputs : 1;
  layer->panels.assign(static_cast<size_t>(round_up(w.out_channels, panel) * K), 0.0f);
  for (int64_t n = 0; n < w.out_channels; ++n)
    for (int64_t k = 0; k < K; ++k) {
      const int64_t at = ((n / panel) * K + k % taps * w.in_channels + k / taps) * panel + n % panel;
      layer->panels[static_cast<size_t>(at)] = weight[static_cast<size_t>(n * K + k)];
    }
}

Outcome finish(Module& m, std::shared_ptr<FloatLayer> layer) {
  layer->bytes = static_cast<int64_t>(layer->panels.size() + layer->first.size() + layer->second.size()) * 4;
  const WeightShape& w = layer->shape;
  m.weight = m.type.find("Linear") != std::string::npos
                 ? shape_of({w.out_channels, w.in_channels})
                 : shape_of({w.out_channels, w.in_channels, w.kernel_h, w.kernel_w});
  m.prepared = std::move(layer);
  return {};
}

Outcome take_weight(Module& m, FloatLayer* layer) {
  const WeightShape& w = layer->shape;
  std::vector<float> weight;
  STOMPP_TRY(of(check_shape(w), STOMPP_BAD_FILE));
  STOMPP_TRY(m.type.find("Linear") != std::string::npos
                 ? m.take("weight", {w.out_channels, w.in_channels}, &weight)
                 : m.take("weight", {w.out_channels, w.in_channels, w.kernel_h, w.kernel_w}, &weight));
  if (m.settings.flag("bias", false)) {
    STOMPP_TRY(m.take("bias", {w.out_channels}, &layer->second));
    layer->first.assign(layer->second.size(), 1.0f);
  }
  order_weight(weight, layer);
  return {};
}

Outcome prepare_linear(Module& m) {
  auto layer = std::make_shared<FloatLayer>();
  layer->shape = {m.settings.integer("out_features", 0), m.settings.integer("in_features", 0), 1, 1, 1};
  STOMPP_TRY(take_weight(m, layer.get()));
  return finish(m, std::move(layer));
}

Outcome conv_shape(Module& m, WeightShape* w) {
  const Arguments& s = m.settings;
  *w = {s.integer("out_channels", 0), s.integer("in_channels", 0), 1, 1, s.integer("groups", 1)};
  STOMPP_TRY(s.pair("kernel_size", 1, &w->kernel_h, &w->kernel_w));
  if (w->in_channels % w->groups != 0) return bad_file("groups must divide the input channels");
  w->in_channels /= w->groups;
  return of(check_shape(*w), STOMPP_BAD_FILE);
}

Outcome prepare_conv(Module& m) {
  auto layer = std::make_shared<FloatLayer>();
  STOMPP_TRY(conv_shape(m, &layer->shape));
  const Json* padding = m.settings.find("padding");
  if (!m.settings.find("padding_mode")->is_text("zeros") || padding->is_text("same"))
    return unsupported("padding 'same', or with other values than zeros");
  STOMPP_TRY(take_weight(m, layer.get()));
  return finish(m, std::move(layer));
}

Outcome prepare_float_conv(Module& m) {
  auto layer = std::make_shared<FloatLayer>();
  STOMPP_TRY(conv_shape(m, &layer->shape));
  const WeightShape& w = layer->shape;
  STOMPP_TRY(m.take("panels", {ceil_div(w.out_channels, kPanelOutputs), w.K(), kPanelOutputs}, &layer->panels));
  const std::string& writes = m.settings.find("writes")->text;
  layer->bits = writes == "bits";
  layer->words = m.settings.find("reads")->text == "bits";
  layer->fused = m.settings.flag("fused", false);
  if (writes != "floats") {
    STOMPP_TRY(m.take(layer->bits ? "low" : "scale", {w.out_channels}, &layer->first));
    STOMPP_TRY(m.take(layer->bits ? "high" : "bias", {w.out_channels}, &layer->second));
  }
  return finish(m, std::move(layer));
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
  p.give(y);
  p.run([=, &layer](const Frame& f) {
    const WeightShape& w = layer.shape;
    FloatConv conv = {};
    if (layer.words)
      conv.words = f.words(x);
    else
      conv.x = f.floats(x);
    conv.weights = layer.panels.data();
    conv.fused = layer.fused;
    const float* first = layer.first.empty() ? nullptr : layer.first.data();
    const float* second = layer.first.empty() ? nullptr : layer.second.data();
    if (layer.bits) {
      conv.limits = {first, second};
      conv.out_words = f.words(y);
    } else {
      conv.scale = first;
      conv.bias = second;
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
  std::vector<float> first, second;
};

Outcome prepare_batch_norm(Module& m) {
  auto own = std::make_shared<PerChannel>();
  const int64_t C = m.settings.integer("num_features", 0);
  const double eps = m.settings.number("eps", 0);
  if (!m.settings.flag("track_running_stats", false)) return unsupported("statistics of the batch");
  std::vector<float> mean, var, weight, bias;
  STOMPP_TRY(m.take("running_mean", {C}, &mean));
  STOMPP_TRY(m.take("running_var", {C}, &var));
  if (m.settings.flag("affine", false)) {
    STOMPP_TRY(m.take("weight", {C}, &weight));
    STOMPP_TRY(m.take("bias", {C}, &bias));
  }
  if (const auto counter = m.tensors.find("num_batches_tracked"); counter != m.tensors.end()) {
    if (counter->second->type != Tensor::Type::kInt64 || !counter->second->shape.empty())
      return bad_file("num_batches_tracked must be one int64");
    m.tensors.erase(counter);
  } else {
    return bad_file("a BatchNorm needs a tensor 'num_batches_tracked'");
  }
  for (size_t c = 0; c < mean.size(); ++c) {
    const float inverse = static_cast<float>(1 / std::sqrt(static_cast<double>(var[c]) + eps));
    own->first.push_back(weight.empty() ? inverse : inverse * weight[c]);
    own->second.push_back((bias.empty() ? 0.0f : bias[c]) - mean[c] * own->first[c]);
  }
  own->bytes = 8 * C;
  m.prepared = own;
  return {};
}

Outcome prepare_prelu(Module& m) {
  auto own = std::make_shared<PerChannel>();
  STOMPP_TRY(m.take("weight", {m.settings.integer("num_parameters", 0)}, &own->first));
  own->bytes = static_cast<int64_t>(own->first.size()) * 4;
  m.prepared = own;
  return {};
}

// Plans f(x, constants of its channel) for [N, C] and images.
template <class F>
Outcome plan_per_channel(Planning& p, bool one_for_all, const F& function) {
  const PerChannel& own = p.prepared<PerChannel>();
  Value x, y;
  STOMPP_TRY(p.floats("input", &x));
  if (x.shape.rank != 2 && x.shape.rank != 4) return unsupported("channels of values that are no rows and no images");
  const int64_t C = x.shape.sizes[1], each = one_for_all && own.first.size() == 1 ? 0 : 1;
  if (each != 0 && static_cast<size_t>(C) != own.first.size())
    return bad_argument("the input has " + std::to_string(C) + " channels, the layer " +
                        std::to_string(own.first.size()));
  STOMPP_TRY(p.overwriting(x, x.shape, &y));
  p.give(y);
  p.run([=, &own](const Frame& f) {
    const float *from = f.floats(x), *a = own.first.data(), *b = own.second.data();
    float* to = f.floats(y);
    f.each(product(x.shape) / C, C, [=](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row)
        for (int64_t c = 0; c < C; ++c) to[row * C + c] = function(from[row * C + c], a[c * each], b, c * each);
    });
    return Status::ok();
  });
  return {};
}

Outcome plan_batch_norm(Planning& p) {
  const int rank = p.module->type == "BatchNorm2d" ? 4 : 2;
  Value x;
  STOMPP_TRY(p.floats("input", &x));
  if (x.shape.rank != rank) return unsupported("a BatchNorm of other dimensions");
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
    {" Conv2d PrepackedConv2d ", kConv, "input:tensor", plan_conv, prepare_conv},
    {" Linear BFloat16Linear ", "in_features:size out_features:size bias:bool", "input:tensor", plan_linear,
     prepare_linear},
    {" BatchNorm1d BatchNorm2d ", kNorm, "input:tensor", plan_batch_norm, prepare_batch_norm},
    {" PReLU ", "num_parameters:size", "input:tensor", plan_prelu, prepare_prelu},
};

}  // namespace

OperationList float_layer_operations() { return {kOperations, std::size(kOperations)}; }

}  // namespace stompp::runtime
