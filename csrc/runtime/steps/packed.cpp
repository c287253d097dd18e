// Layers on bits, and what brings floats to bits and back.
#include "core/binary_weight/binary_weight.h"
#include "core/product/bconv2d.h"
#include "core/product/bgemm.h"
#include "core/signs/max_pool.h"
#include "core/signs/pack.h"
#include "runtime/graph/planning.h"
#include "runtime/steps/geometry.h"
#include "runtime/workers/team.h"

namespace stompp::runtime {
namespace {

// A weight in the order of the implementation's kernels, and what follows the sums.
struct Layer : Prepared {
  WeightShape shape = {};
  std::vector<uint8_t> packed;
  PackedWeight view = {};
  Epilogue epilogue;  // without what lies in the arena
  int64_t threshold_rows = 0;
  bool writes_floats = false, writes_bits = false;
};

Outcome pack_weight(Module& m, const WeightLayout& layout, Layer* layer) {
  std::vector<int64_t> sizes = m.settings.integers("shape");
  WeightShape& w = layer->shape;
  w = {sizes[0], sizes[1], 1, 1, m.settings.integer("groups", 1)};
  for (const int64_t size : sizes) m.weight.sizes[m.weight.rank++] = size;
  if (sizes.size() == 4) {
    w.kernel_h = sizes[2];
    w.kernel_w = sizes[3];
  } else if (w.groups != 1) {
    return bad_file("groups of a linear layer must be 1");
  }
  STOMPP_TRY(of(check_shape(w), STOMPP_BAD_FILE));
  sizes.erase(sizes.begin() + 1);
  sizes.push_back(words_for(w.in_channels));
  std::vector<int32_t> words;
  STOMPP_TRY(m.take("weight", sizes, &words));
  layer->bytes = packed_bytes(w, layout);
  if (layer->bytes > kMostBytes) return unsupported("a weight that is too large");
  layer->packed.resize(static_cast<size_t>(layer->bytes));
  const auto* from = reinterpret_cast<const uint32_t*>(words.data());
  STOMPP_TRY(of(pack_weight_words(from, w, layout, layer->packed.data(), this_thread()), STOMPP_BAD_FILE));
  return of(view_packed(layer->packed.data(), layer->bytes, w, &layer->view), STOMPP_BAD_FILE);
}

// Takes the scale and bias that each layer without thresholds has.
Outcome take_affine(Module& m, Layer* layer) {
  STOMPP_TRY(m.keep("scale", {layer->shape.out_channels}, layer, &layer->epilogue.scale));
  return m.keep("bias", {layer->shape.out_channels}, layer, &layer->epilogue.bias);
}

Outcome prepare_packed(Module& m) {
  auto layer = std::make_shared<Layer>();
  Epilogue& e = layer->epilogue;
  m.prepared = layer;
  m.arithmetic = STOMPP_BINARY;
  STOMPP_TRY(pack_weight(m, m.implementation->product->layout, layer.get()));
  const int64_t N = e.N = layer->shape.out_channels, rows = m.settings.integer("threshold_rows", 0);
  const std::string& writes = m.settings.find("writes")->text;
  e.kind = rows == 0 ? Epilogue::Kind::kAffine : Epilogue::Kind::kThreshold;
  e.fused = m.settings.flag("fused", false);
  layer->threshold_rows = rows;
  layer->writes_floats = writes != "bits";
  layer->writes_bits = writes != "floats";
  if (rows > 0) {
    const int32_t* flips = nullptr;
    if (writes != "bits" || e.fused) return bad_file("a layer with thresholds writes bits, and is not fused");
    STOMPP_TRY(m.keep("thresholds", {rows, N}, layer.get(), &e.thresholds));
    STOMPP_TRY(m.keep("flip_words", {words_for(N)}, layer.get(), &flips));
    e.flip_words = reinterpret_cast<const uint32_t*>(flips);
    return {};
  }
  STOMPP_TRY(take_affine(m, layer.get()));
  if (m.has("residual_scale")) {
    STOMPP_TRY(m.keep("residual_scale", {N}, layer.get(), &e.residual_scale));
    STOMPP_TRY(m.keep("residual_bias", {N}, layer.get(), &e.residual_bias));
  }
  if (m.has("rprelu")) STOMPP_TRY(m.keep("rprelu", {3, N}, layer.get(), &e.rprelu));
  if (m.has("limits") && layer->writes_bits) STOMPP_TRY(m.keep("limits", {2, N}, layer.get(), &e.limits));
  return {};
}

Outcome prepare_binary_weight(Module& m) {
  auto layer = std::make_shared<Layer>();
  m.prepared = layer;
  m.arithmetic = STOMPP_BINARY_WEIGHTS;
  const Arguments& s = m.settings;
  if (s.integer("threshold_rows", 0) != 0 || s.flag("fused", false) || s.find("writes")->text != "floats")
    return bad_file("a layer on floats has a scale and a bias only");
  STOMPP_TRY(pack_weight(m, kFloatInputLayout, layer.get()));
  return take_affine(m, layer.get());
}

// Plans what all packed layers have in common. `out` is [..., N] as the sums lie.
template <class Product>
Outcome plan_product(Planning& p, const Shape& out, const Product& product) {
  const Layer& layer = p.prepared<Layer>();
  const bool thresholds = layer.threshold_rows > 0;
  const int64_t* o = out.sizes;
  const Shape logical = out.rank == 4 ? shape_of({o[0], o[3], o[1], o[2]}) : out;
  Value residual, floats, bits;
  if (p.find("residual") != nullptr) {
    STOMPP_TRY(thresholds ? p.bits("residual", &residual) : p.floats("residual", &residual));
    if (!(residual.shape == (thresholds ? out : logical)))
      return unsupported("a shortcut whose sizes are not those of what it is added to");
  }
  const bool has_residual = residual.kind != Value::Kind::kNone;
  if (thresholds && layer.threshold_rows != (has_residual ? 2 : 1))
    return bad_file("a layer with two rows of thresholds needs a shortcut, one with a single row has none");
  if (layer.writes_floats) STOMPP_TRY(p.make(Value::Kind::kFloats, logical, &floats));
  if (layer.writes_bits) STOMPP_TRY(p.make(Value::Kind::kBits, out, &bits));
  p.run([=, &layer](const Frame& f) {
    Epilogue e = layer.epilogue;
    if (has_residual && !thresholds) e.residual = f.floats(residual);
    if (has_residual && thresholds) e.residual_words = f.words(residual);
    if (layer.writes_floats) e.out = f.floats(floats);
    if (thresholds) e.out = f.words(bits);
    if (layer.writes_bits && !thresholds) e.sign_words = f.words(bits);
    return product(f, layer, e);
  });
  return {};
}

Outcome plan_packed_linear(Planning& p) {
  Value x;
  STOMPP_TRY(p.bits("x_words", &x));
  const WeightShape& w = p.prepared<Layer>().shape;
  if (x.last() != w.in_channels) return bad_argument("the input's features are not those of the weight");
  Shape out = x.shape;
  out.sizes[out.rank - 1] = w.out_channels;
  if (out.rank == 4) return unsupported("features of images");
  return plan_product(p, out, [=](const Frame& f, const Layer& layer, const Epilogue& e) {
    return bgemm(f.words(x), x.rows(), layer.view, e, f.pool);
  });
}

Outcome plan_packed_conv(Planning& p) {
  Value x;
  STOMPP_TRY(p.bits("x_words", &x));
  const WeightShape& w = p.prepared<Layer>().shape;
  Conv2dShape shape;
  const int64_t *sizes = x.shape.sizes, value = p.module->settings.integer("padding_value", 0);
  if (x.shape.rank != 4) return bad_argument("the input is no image");
  STOMPP_TRY(conv2d_shape(p, {sizes[0], sizes[1], sizes[2], sizes[3]}, w, static_cast<int>(value), &shape));
  const Shape out = shape_of({sizes[0], shape.out_height(w), shape.out_width(w), w.out_channels});
  return plan_product(p, out, [=](const Frame& f, const Layer& layer, const Epilogue& e) {
    return bconv2d(f.words(x), shape, layer.view, e, f.pool);
  });
}

Outcome plan_float_inputs(Planning& p) {
  Value x, y;
  const Layer& layer = p.prepared<Layer>();
  const WeightShape& w = layer.shape;
  const bool conv = p.module->weight.rank == 4;
  STOMPP_TRY(conv ? p.images("x", &x) : p.floats("x", &x));
  Conv2dShape shape = {1, 1, x.rows(), w.in_channels, 1, 1, 0, 0, 1, 1, 0};
  Shape out = x.shape;
  if (conv) {
    STOMPP_TRY(conv2d_shape(p, pixels_of(x), w, 0, &shape));
    out = shape_of({shape.batch, w.out_channels, shape.out_height(w), shape.out_width(w)});
  } else {
    if (x.shape.rank == 4 || x.last() != w.in_channels)
      return bad_argument("the input's features are not those of the weight");
    out.sizes[out.rank - 1] = w.out_channels;
  }
  STOMPP_TRY(p.make(Value::Kind::kFloats, out, &y));
  p.run([=, &layer, &e = layer.epilogue](const Frame& f) {
    const FloatProduct product = {f.floats(x), f.floats(y), FloatType::kFloat32, e.scale, e.bias};
    return conv2d_binary_weight(product, shape, layer.view, f.pool);
  });
  return {};
}

struct LimitsOfChannels : Prepared {
  Limits limits = {};
  int64_t channels = 0;
};

Outcome prepare_pack_batch_norm(Module& m) {
  auto own = std::make_shared<LimitsOfChannels>();
  own->channels = m.settings.integer("channels", 0);
  m.prepared = own;
  STOMPP_TRY(m.keep("low", {own->channels}, own.get(), &own->limits.low));
  return m.keep("high", {own->channels}, own.get(), &own->limits.high);
}

Outcome plan_pack(Planning& p) {
  Value x, y;
  const bool images = p.flag("images", false);
  STOMPP_TRY(images ? p.images("input", &x) : p.floats("input", &x));
  if (x.shape.rank == 4 && !images) return unsupported("signs along the last dimension of four");
  const auto pixels = images ? pixels_of(x) : Pixels{};
  const Shape shape = images ? shape_of({pixels.batch, pixels.height, pixels.width, pixels.channels}) : x.shape;
  Limits limits;
  if (p.module->prepared != nullptr) {
    const auto& own = p.prepared<LimitsOfChannels>();
    limits = own.limits;
    if (shape.sizes[shape.rank - 1] != own.channels)
      return bad_argument("the input's channels are not those of the limits");
  }
  STOMPP_TRY(p.make(Value::Kind::kBits, shape, &y));
  p.run([=](const Frame& f) {
    return pack_signs(f.floats(x), FloatType::kFloat32, y.rows(), y.last(), limits, f.words(y), f.pool);
  });
  return {};
}

Outcome plan_unpack(Planning& p) {
  Value x, y;
  STOMPP_TRY(p.bits("input", &x));
  const bool images = p.flag("images", false);
  int64_t down = 1, right = 1;
  STOMPP_TRY(p.module->settings.pair("stride", 1, &down, &right));
  if (x.last() != p.integer("channels", 0) || images != (x.shape.rank == 4) || (!images && (down != 1 || right != 1)))
    return bad_argument("the input has other sizes than this layer's");
  const int64_t* s = x.shape.sizes;
  const int64_t height = images ? ceil_div(s[1], down) : 1, width = images ? ceil_div(s[2], right) : 1;
  STOMPP_TRY(p.make(Value::Kind::kFloats, images ? shape_of({s[0], s[3], height, width}) : x.shape, &y));
  p.run([=](const Frame& f) {
    const int64_t C = x.last(), words = words_for(C);
    if (!images || (down == 1 && right == 1))
      return unpack_signs(f.words(x), x.rows(), C, f.floats(y), FloatType::kFloat32, f.pool);
    for (int64_t line = 0; line < x.shape.sizes[0] * height; ++line)
      for (int64_t column = 0; column < width; ++column) {
        const int64_t from = (line / height * x.shape.sizes[1] + line % height * down) * x.shape.sizes[2];
        const Status status = unpack_signs(f.words(x) + (from + column * right) * words, 1, C,
                                           f.floats(y) + (line * width + column) * C, FloatType::kFloat32, f.pool);
        if (!status.is_ok()) return status;
      }
    return Status::ok();
  });
  return {};
}

Outcome plan_max_pool_signs(Planning& p) {
  Value x, y;
  STOMPP_TRY(p.bits("input", &x));
  if (x.shape.rank != 4) return bad_argument("the input is no image");
  Window w;
  STOMPP_TRY(window_of(p, &w));
  const int64_t* s = x.shape.sizes;
  const MaxPoolShape shape = {s[0],
                              s[1],
                              s[2],
                              words_for(s[3]),
                              w.height.kernel,
                              w.width.kernel,
                              w.height.stride,
                              w.width.stride,
                              w.height.padding,
                              w.width.padding,
                              w.height.dilation,
                              w.width.dilation,
                              w.ceil_mode};
  STOMPP_TRY(of(check_max_pool(shape), STOMPP_BAD_ARGUMENT));
  STOMPP_TRY(p.make(Value::Kind::kBits, shape_of({s[0], shape.out_height(), shape.out_width(), s[3]}), &y));
  p.run([=](const Frame& f) { return max_pool2d_signs(f.words(x), shape, f.words(y), f.pool); });
  return {};
}

#define LAYER "groups:size replaces:names threshold_rows:rows writes:writes fused:bool why_floats=note"
#define CONV " stride:steps padding:pads dilation:steps"
constexpr const char* kWords = "x_words:tensor residual=tensor|none";

constexpr Operation kOperations[] = {
    {" PackedLinear ", "type:note shape:row " LAYER, kWords, plan_packed_linear, prepare_packed},
    {" PackedConv2d ", "type:note shape:kernels " LAYER CONV " padding_value:sign", kWords, plan_packed_conv,
     prepare_packed},
    {" BinaryWeightLinear ", "type:note shape:row " LAYER, "x:tensor", plan_float_inputs, prepare_binary_weight},
    {" BinaryWeightConv2d ", "type:note shape:kernels " LAYER CONV, "x:tensor", plan_float_inputs,
     prepare_binary_weight},
    {" PackSigns ", "images:bool", "input:tensor", plan_pack},
    {" PackBatchNorm ", "channels:size images:bool", "input:tensor", plan_pack, prepare_pack_batch_norm},
    {" UnpackSigns ", "channels:size images:bool stride=kernel", "input:tensor", plan_unpack},
    {" MaxPoolSigns ", "kernel_size:kernel stride:kernel|none padding:padding dilation:kernel ceil_mode:bool",
     "input:tensor", plan_max_pool_signs},
};

}  // namespace

OperationList packed_operations() { return {kOperations, std::size(kOperations)}; }

}  // namespace stompp::runtime
