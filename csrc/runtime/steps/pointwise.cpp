// Functions of each value, and of two values that stand in the same place.
#include <algorithm>
#include <cmath>

#include "runtime/graph/planning.h"
#include "runtime/steps/nest.h"

namespace stompp::runtime {
namespace {

template <class F>
Outcome unary(Planning& p, const F& function) {
  Value x, y;
  STOMPP_TRY(p.floats("input", &x));
  STOMPP_TRY(p.overwriting(x, x.shape, &y));
  p.run([=](const Frame& f) {
    const float* from = f.floats(x);
    float* to = f.floats(y);
    f.each(product(x.shape), 1, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] = function(from[i]);
    });
    return Status::ok();
  });
  return {};
}

template <float (*function)(float)>
Outcome each(Planning& p) {
  return unary(p, [](float v) { return function(v); });
}

// NaN stays NaN: where they do not compare, min and max return their first argument.
float clamp(float v, float low, float high) { return std::min(std::max(v, low), high); }
float relu(float v) { return v < 0 ? 0 : v; }
float relu6(float v) { return clamp(v, 0, 6); }
float hardsigmoid(float v) { return clamp(v + 3, 0, 6) / 6; }
float hardswish(float v) { return v * clamp(v + 3, 0, 6) / 6; }
float sigmoid(float v) { return 1 / (1 + std::exp(-v)); }
float hyperbolic_tangent(float v) { return std::tanh(v); }
float negative(float v) { return -v; }
float sign(float v) { return v < 0 ? -1 : 1; }
float gelu(float v) { return 0.5f * v * (1 + std::erf(v * 0.70710678118654752f)); }
float tanh_gelu(float v) { return 0.5f * v * (1 + std::tanh(0.79788456080286536f * (v + 0.044715f * v * v * v))); }
float softplus(float v) { return v > 20 ? v : std::log1p(std::exp(v)); }
float mish(float v) { return v * std::tanh(softplus(v)); }
float silu(float v) { return v / (1 + std::exp(-v)); }

// Gives a negative number for what rounds to zero from below, see stompp_kernels/nn/sign_keeping.py.
template <float (*function)(float)>
float sign_keeping(float v) {
  const float y = function(v);
  return v < 0 && y >= 0 ? -1e-30f : y;
}

Outcome plan_gelu(Planning& p) {
  const Json* approximate = p.find("approximate");
  const bool exact = approximate == nullptr || approximate->text == "none";
  if (p.module != nullptr && p.module->type == "SignKeepingGELU")
    return exact ? each<sign_keeping<gelu>>(p) : each<sign_keeping<tanh_gelu>>(p);
  return exact ? each<gelu>(p) : each<tanh_gelu>(p);
}

Outcome between(Planning& p, double low, double high) {
  const auto least = static_cast<float>(low), most = static_cast<float>(high);
  return unary(p, [=](float v) { return clamp(v, least, most); });
}

Outcome plan_hardtanh(Planning& p) { return between(p, p.number("min_val", -1), p.number("max_val", 1)); }
Outcome plan_clamp(Planning& p) { return between(p, p.number("min", -INFINITY), p.number("max", INFINITY)); }

Outcome plan_leaky_relu(Planning& p) {
  const auto slope = static_cast<float>(p.number("negative_slope", 0.01));
  return unary(p, [=](float v) { return v > 0 ? v : v * slope; });
}

Outcome plan_elu(Planning& p) {
  const auto alpha = static_cast<float>(p.number("alpha", 1));
  return unary(p, [=](float v) { return v > 0 ? v : alpha * std::expm1(v); });
}

// The strides of an argument in the dimensions of the result that it is broadcast to.
bool broadcast(const Value& value, const Shape& out, Shape* strides) {
  const Shape own = strides_of(value.shape);
  *strides = out;
  for (int i = 0; i < out.rank; ++i) {
    const int dim = i - (out.rank - value.shape.rank);
    const int64_t size = dim < 0 ? 1 : value.shape.sizes[dim];
    if (size != 1 && size != out.sizes[i]) return false;
    strides->sizes[i] = size == 1 ? 0 : own.sizes[dim];
  }
  return true;
}

Shape larger(const Shape& a, const Shape& b) {
  Shape shape = a.rank >= b.rank ? a : b;
  const Shape& other = a.rank >= b.rank ? b : a;
  for (int i = 0; i < other.rank; ++i) {
    int64_t& size = shape.sizes[shape.rank - other.rank + i];
    if (size == 1) size = other.sizes[i];
  }
  return shape;
}

// One of the two may be a number.
template <float (*function)(float, float)>
Outcome binary(Planning& p) {
  const char* names[] = {p.find("a") == nullptr ? "input" : "a", p.find("b") == nullptr ? "other" : "b"};
  Value x[2], y;
  float number[2] = {};
  for (int i = 0; i < 2; ++i) {
    const Json* argument = p.find(names[i]);
    x[i].shape = shape_of({});
    if (argument != nullptr && argument->is_number())
      number[i] = static_cast<float>(argument->number);
    else
      STOMPP_TRY(p.floats(names[i], &x[i]));
  }
  if (p.number("alpha", 1) != 1) return unsupported("a factor alpha");
  const Shape out = larger(x[0].shape, x[1].shape);
  Shape strides[2];
  for (int i = 0; i < 2; ++i)
    if (!broadcast(x[i], out, &strides[i])) return bad_argument("sizes that do not fit each other");
  const auto is_whole = [&](const Value& v) { return v.kind == Value::Kind::kFloats && v.shape == out; };
  STOMPP_TRY(is_whole(x[0])   ? p.overwriting(x[0], out, &y)
             : is_whole(x[1]) ? p.overwriting(x[1], out, &y)
                              : p.make(Value::Kind::kFloats, out, &y));
  p.run([=, nest = Nest(out, strides[0], strides[1]), a = x[0], b = x[1], first = number[0],
         second = number[1]](const Frame& f) {
    const auto floats = [&](const Value& v, const float& number) {
      return v.kind == Value::Kind::kNone ? &number : f.floats(v);
    };
    run_nest(f, nest, floats(a, first), floats(b, second), f.floats(y),
             [](float v, float w) { return function(v, w); });
    return Status::ok();
  });
  return {};
}

float sum(float a, float b) { return a + b; }
float difference(float a, float b) { return a - b; }
float product_of(float a, float b) { return a * b; }
float quotient(float a, float b) { return a / b; }

constexpr const char *kX = "input:tensor", *kInplace = "inplace=bool", *kXInplace = "input:tensor inplace=bool";
constexpr const char *kTwo = "a:tensor|number b:tensor|number", *kMethod = "input:tensor other:tensor|number";
constexpr const char* kAlpha = "input:tensor other:tensor|number alpha=number";

constexpr Operation kOperations[] = {
    {" ReLU F.relu torch.relu .relu torch.relu_ .relu_ ", kInplace, kXInplace, each<relu>},
    {" ReLU6 F.relu6 ", kInplace, kXInplace, each<relu6>},
    {" Hardtanh ", "min_val:number max_val:number inplace=bool", kX, plan_hardtanh},
    {" F.hardtanh ", nullptr, "input:tensor min_val=number max_val=number inplace=bool", plan_hardtanh},
    {" torch.clamp .clamp torch.clip .clip ", nullptr, "input:tensor min=number|none max=number|none", plan_clamp},
    {" LeakyReLU ", "negative_slope:number inplace=bool", kX, plan_leaky_relu},
    {" F.leaky_relu ", nullptr, "input:tensor negative_slope=number inplace=bool", plan_leaky_relu},
    {" ELU ", "alpha:number inplace=bool", kX, plan_elu},
    {" F.elu ", nullptr, "input:tensor alpha=number inplace=bool", plan_elu},
    {" Hardswish F.hardswish ", kInplace, kXInplace, each<hardswish>},
    {" Hardsigmoid F.hardsigmoid ", kInplace, kXInplace, each<hardsigmoid>},
    {" GELU SignKeepingGELU ", "approximate:gelu", kX, plan_gelu},
    {" F.gelu ", nullptr, "input:tensor approximate=gelu", plan_gelu},
    {" SiLU F.silu ", kInplace, kXInplace, each<silu>},
    {" Mish F.mish ", kInplace, kXInplace, each<mish>},
    {" SignKeepingSiLU ", kInplace, kX, each<sign_keeping<silu>>},
    {" SignKeepingMish ", kInplace, kX, each<sign_keeping<mish>>},
    {" Sigmoid F.sigmoid torch.sigmoid .sigmoid ", "", kX, each<sigmoid>},
    {" Tanh F.tanh torch.tanh .tanh ", "", kX, each<hyperbolic_tangent>},
    {" SignActivation ", "", kX, each<sign>},
    {" neg torch.neg .neg ", nullptr, kX, each<negative>},
    {" add iadd ", nullptr, kTwo, binary<sum>},
    {" torch.add .add .add_ ", nullptr, kAlpha, binary<sum>},
    {" sub isub ", nullptr, kTwo, binary<difference>},
    {" torch.sub .sub .sub_ ", nullptr, kAlpha, binary<difference>},
    {" mul imul ", nullptr, kTwo, binary<product_of>},
    {" torch.mul .mul .mul_ ", nullptr, kMethod, binary<product_of>},
    {" truediv itruediv ", nullptr, kTwo, binary<quotient>},
    {" torch.div .div .div_ ", nullptr, kMethod, binary<quotient>},
};

}  // namespace

OperationList pointwise_operations() { return {kOperations, std::size(kOperations)}; }

}  // namespace stompp::runtime
