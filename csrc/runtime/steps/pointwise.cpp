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
  p.give(y);
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

// NaN stays NaN.
float clamp(float v, float low, float high) { return v < low ? low : v > high ? high : v; }
float sigmoid(float v) { return 1 / (1 + std::exp(-v)); }
float gelu(float v) { return 0.5f * v * (1 + std::erf(v * 0.70710678118654752f)); }
float tanh_gelu(float v) { return 0.5f * v * (1 + std::tanh(0.79788456080286536f * (v + 0.044715f * v * v * v))); }
float softplus(float v) { return v > 20 ? v : std::log1p(std::exp(v)); }
float mish(float v) { return v * std::tanh(softplus(v)); }
float silu(float v) { return v / (1 + std::exp(-v)); }
// A negative number for what rounds to zero from below, see stompp_kernels/nn/sign_keeping.py.
float keep(float y, float x) { return x < 0 && y >= 0 ? -1e-30f : y; }

Outcome plan_relu(Planning& p) {
  return unary(p, [](float v) { return v < 0 ? 0.0f : v; });
}
Outcome plan_relu6(Planning& p) {
  return unary(p, [](float v) { return clamp(v, 0, 6); });
}
Outcome plan_hardtanh(Planning& p) {
  const auto low = static_cast<float>(p.number("min_val", -1)), high = static_cast<float>(p.number("max_val", 1));
  return unary(p, [=](float v) { return clamp(v, low, high); });
}
Outcome plan_clamp(Planning& p) {
  const auto low = static_cast<float>(p.number("min", -INFINITY)), high = static_cast<float>(p.number("max", INFINITY));
  return unary(p, [=](float v) { return std::isnan(v) ? v : std::min(std::max(v, low), high); });
}
Outcome plan_leaky_relu(Planning& p) {
  const auto slope = static_cast<float>(p.number("negative_slope", 0.01));
  return unary(p, [=](float v) { return v > 0 ? v : v * slope; });
}
Outcome plan_elu(Planning& p) {
  const auto alpha = static_cast<float>(p.number("alpha", 1));
  return unary(p, [=](float v) { return v > 0 ? v : alpha * std::expm1(v); });
}
Outcome plan_hardswish(Planning& p) {
  return unary(p, [](float v) { return v * clamp(v + 3, 0, 6) / 6; });
}
Outcome plan_hardsigmoid(Planning& p) {
  return unary(p, [](float v) { return clamp(v + 3, 0, 6) / 6; });
}
Outcome plan_gelu(Planning& p) {
  const Json* approximate = p.find("approximate");
  const bool exact = approximate == nullptr || approximate->text == "none";
  const bool keeps = p.module != nullptr && p.module->type == "SignKeepingGELU";
  return unary(p, [=](float v) {
    const float y = exact ? gelu(v) : tanh_gelu(v);
    return keeps ? keep(y, v) : y;
  });
}
Outcome plan_silu(Planning& p) { return unary(p, silu); }
Outcome plan_mish(Planning& p) { return unary(p, mish); }
Outcome plan_keeping_silu(Planning& p) {
  return unary(p, [](float v) { return keep(silu(v), v); });
}
Outcome plan_keeping_mish(Planning& p) {
  return unary(p, [](float v) { return keep(mish(v), v); });
}
Outcome plan_sigmoid(Planning& p) { return unary(p, sigmoid); }
Outcome plan_tanh(Planning& p) {
  return unary(p, [](float v) { return std::tanh(v); });
}
Outcome plan_neg(Planning& p) {
  return unary(p, [](float v) { return -v; });
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
template <class F>
Outcome binary(Planning& p, const F& function) {
  const char* names[] = {p.find("a") == nullptr ? "input" : "a", p.find("b") == nullptr ? "other" : "b"};
  Value x[2];
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
  Value y;
  const int over = x[0].kind == Value::Kind::kFloats && x[0].shape == out ? 0 : 1;
  STOMPP_TRY(x[over].shape == out && x[over].kind == Value::Kind::kFloats ? p.overwriting(x[over], out, &y)
                                                                          : p.make(Value::Kind::kFloats, out, &y));
  p.give(y);
  const Nest nest(out, strides[0], strides[1]);
  const Value a = x[0], b = x[1];
  const float first = number[0], second = number[1];
  p.run([=](const Frame& f) {
    run_nest(f, nest, a.kind == Value::Kind::kNone ? &first : f.floats(a),
             b.kind == Value::Kind::kNone ? &second : f.floats(b), f.floats(y), function);
    return Status::ok();
  });
  return {};
}

Outcome plan_add(Planning& p) {
  return binary(p, [](float a, float b) { return a + b; });
}
Outcome plan_sub(Planning& p) {
  return binary(p, [](float a, float b) { return a - b; });
}
Outcome plan_mul(Planning& p) {
  return binary(p, [](float a, float b) { return a * b; });
}
Outcome plan_div(Planning& p) {
  return binary(p, [](float a, float b) { return a / b; });
}

constexpr const char *kX = "input:tensor", *kInplace = "inplace=bool", *kXInplace = "input:tensor inplace=bool";
constexpr const char *kTwo = "a:tensor|number b:tensor|number", *kMethod = "input:tensor other:tensor|number";
constexpr const char* kAlpha = "input:tensor other:tensor|number alpha=number";

constexpr Operation kOperations[] = {
    {" ReLU F.relu torch.relu .relu torch.relu_ .relu_ ", kInplace, kXInplace, plan_relu},
    {" ReLU6 F.relu6 ", kInplace, kXInplace, plan_relu6},
    {" Hardtanh ", "min_val:number max_val:number inplace=bool", kX, plan_hardtanh},
    {" F.hardtanh ", nullptr, "input:tensor min_val=number max_val=number inplace=bool", plan_hardtanh},
    {" torch.clamp .clamp torch.clip .clip ", nullptr, "input:tensor min=number|none max=number|none", plan_clamp},
    {" LeakyReLU ", "negative_slope:number inplace=bool", kX, plan_leaky_relu},
    {" F.leaky_relu ", nullptr, "input:tensor negative_slope=number inplace=bool", plan_leaky_relu},
    {" ELU ", "alpha:number inplace=bool", kX, plan_elu},
    {" F.elu ", nullptr, "input:tensor alpha=number inplace=bool", plan_elu},
    {" Hardswish F.hardswish ", kInplace, kXInplace, plan_hardswish},
    {" Hardsigmoid F.hardsigmoid ", kInplace, kXInplace, plan_hardsigmoid},
    {" GELU SignKeepingGELU ", "approximate:gelu", kX, plan_gelu},
    {" F.gelu ", nullptr, "input:tensor approximate=gelu", plan_gelu},
    {" SiLU F.silu ", kInplace, kXInplace, plan_silu},
    {" Mish F.mish ", kInplace, kXInplace, plan_mish},
    {" SignKeepingSiLU ", kInplace, kX, plan_keeping_silu},
    {" SignKeepingMish ", kInplace, kX, plan_keeping_mish},
    {" Sigmoid F.sigmoid torch.sigmoid .sigmoid ", "", kX, plan_sigmoid},
    {" Tanh F.tanh torch.tanh .tanh ", "", kX, plan_tanh},
    {" neg torch.neg .neg ", nullptr, kX, plan_neg},
    {" add iadd ", nullptr, kTwo, plan_add},
    {" torch.add .add .add_ ", nullptr, kAlpha, plan_add},
    {" sub isub ", nullptr, kTwo, plan_sub},
    {" torch.sub .sub .sub_ ", nullptr, kAlpha, plan_sub},
    {" mul imul ", nullptr, kTwo, plan_mul},
    {" torch.mul .mul .mul_ ", nullptr, kMethod, plan_mul},
    {" truediv itruediv ", nullptr, kTwo, plan_div},
    {" torch.div .div .div_ ", nullptr, kMethod, plan_div},
};

}  // namespace

OperationList pointwise_operations() { return {kOperations, std::size(kOperations)}; }

}  // namespace stompp::runtime
