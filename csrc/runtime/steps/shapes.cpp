// What changes the sizes of values, and no value.
#include <algorithm>
#include <cstring>

#include "runtime/graph/planning.h"
#include "runtime/steps/nest.h"

namespace stompp::runtime {
namespace {

Outcome same(Planning& p, const Value& x, const Shape& shape) {
  Value y = x;
  y.shape = shape;
  p.give(y);
  return {};
}

// Plans a copy of what lies `offset` floats from the first of x on.
Outcome copy(Planning& p, const Value& x, const Shape& shape, const Nest& nest, int64_t offset = 0) {
  Value y;
  STOMPP_TRY(p.make(Value::Kind::kFloats, shape, &y));
  p.run([=](const Frame& f) {
    copy_nest(f, nest, f.floats(x) + offset, f.floats(y));
    return Status::ok();
  });
  return {};
}

bool is_row_major(const Shape& s) { return s.rank != 4 || s.sizes[1] == 1 || s.sizes[2] * s.sizes[3] == 1; }

Outcome reshape(Planning& p, const Value& x, const Shape& shape) {
  if (product(shape) != product(x.shape)) return bad_argument("sizes that hold another number of values");
  if (shape == x.shape || (is_row_major(x.shape) && is_row_major(shape))) return same(p, x, shape);
  if (!is_row_major(x.shape) && !is_row_major(shape)) return unsupported("images that become images of other sizes");
  const bool to_images = is_row_major(x.shape);
  const Shape& images = to_images ? shape : x.shape;
  const Shape strides = strides_in_order(images, !to_images);
  return copy(p, x, shape, Nest(images, strides, strides, !to_images));
}

Outcome plan_reshape(Planning& p) {
  Value x;
  STOMPP_TRY(p.floats("input", &x));
  const Json* sizes = p.find("shape");
  std::vector<Json> one;
  if (!sizes->is(Json::Kind::kList)) one.assign(1, *sizes);
  Shape shape = {};
  int rest = -1;
  for (const Json& size : one.empty() ? sizes->items : one) {
    Value numbers;
    if (node_in(size) != nullptr)
      STOMPP_TRY(p.value_in(size, &numbers));
    else
      numbers.shape = shape_of({size.integer});
    if (node_in(size) != nullptr && numbers.kind != Value::Kind::kSizes)
      return bad_argument("a size that is no number");
    for (int i = 0; i < numbers.shape.rank; ++i) {
      if (shape.rank == STOMPP_MAX_RANK) return unsupported("more than 8 dimensions");
      if (numbers.shape.sizes[i] < 1) rest = rest < 0 && numbers.shape.sizes[i] == -1 ? shape.rank : STOMPP_MAX_RANK;
      shape.sizes[shape.rank++] = numbers.shape.sizes[i] == -1 ? 1 : numbers.shape.sizes[i];
    }
  }
  if (rest >= STOMPP_MAX_RANK || shape.rank == 0) return bad_argument("sizes that are no sizes");
  if (rest >= 0) shape.sizes[rest] = product(x.shape) / std::max<int64_t>(product(shape), 1);
  return reshape(p, x, shape);
}

Outcome plan_flatten(Planning& p) {
  Value x;
  int first = 0, last = 0;
  STOMPP_TRY(p.floats("input", &x));
  const int rank = x.shape.rank;
  STOMPP_TRY(p.dimension("start_dim", p.module == nullptr ? 0 : 1, rank, &first));
  STOMPP_TRY(p.dimension("end_dim", -1, rank, &last));
  if (last < first) return bad_argument("end_dim lies before start_dim");
  Shape shape = {};
  for (int i = 0; i < rank; ++i) {
    if (i > first && i <= last)
      shape.sizes[shape.rank - 1] *= x.shape.sizes[i];
    else
      shape.sizes[shape.rank++] = x.shape.sizes[i];
  }
  return reshape(p, x, shape);
}

Outcome plan_permute(Planning& p) {
  Value x;
  STOMPP_TRY(p.floats("input", &x));
  const int rank = x.shape.rank;
  std::vector<int64_t> dims = p.own("dims").integers("dims");
  if (p.find("dim0") != nullptr) {
    int a = 0, b = 0;
    STOMPP_TRY(p.dimension("dim0", 0, rank, &a));
    STOMPP_TRY(p.dimension("dim1", 0, rank, &b));
    for (int i = 0; i < rank; ++i) dims.push_back(i == a ? b : i == b ? a : i);
  }
  const Shape own = strides_of(x.shape);
  Shape shape = {}, strides = {};
  std::vector<bool> seen(static_cast<size_t>(rank));
  for (int64_t dim : dims) {
    dim += dim < 0 ? rank : 0;
    if (dim < 0 || dim >= rank || seen[static_cast<size_t>(dim)] || dims.size() != seen.size())
      return bad_argument("dimensions that are no order of the value's");
    seen[static_cast<size_t>(dim)] = true;
    shape.sizes[shape.rank++] = x.shape.sizes[dim];
    strides.sizes[strides.rank++] = own.sizes[dim];
  }
  return copy(p, x, shape, Nest(shape, strides, strides));
}

Outcome plan_squeeze(Planning& p) {
  Value x;
  int dim = 0;
  STOMPP_TRY(p.floats("input", &x));
  STOMPP_TRY(p.dimension("dim", 0, x.shape.rank, &dim));
  if (x.shape.sizes[dim] != 1) return same(p, x, x.shape);
  Shape shape = x.shape;
  std::copy(shape.sizes + dim + 1, shape.sizes + shape.rank, shape.sizes + dim);
  --shape.rank;
  return reshape(p, x, shape);
}

Outcome plan_unsqueeze(Planning& p) {
  Value x;
  int dim = 0;
  STOMPP_TRY(p.floats("input", &x));
  STOMPP_TRY(p.dimension("dim", 0, x.shape.rank + 1, &dim));
  if (x.shape.rank == STOMPP_MAX_RANK) return unsupported("more than 8 dimensions");
  Shape shape = x.shape;
  std::copy_backward(shape.sizes + dim, shape.sizes + shape.rank, shape.sizes + shape.rank + 1);
  shape.sizes[dim] = 1;
  ++shape.rank;
  return reshape(p, x, shape);
}

// One end of a slice, within [0, size].
bool end_of(const Json& json, int64_t otherwise, int64_t size, int64_t* end) {
  if (!json.is(Json::Kind::kInteger) && !json.is(Json::Kind::kNull)) return false;
  const int64_t value = json.is(Json::Kind::kNull) ? otherwise : json.integer;
  *end = std::clamp<int64_t>(value < 0 ? value + size : value, 0, size);
  return true;
}

// What x[...] reads: slices with positive steps, numbers, new dimensions and an ellipsis.
Outcome plan_part(Planning& p, const Value& x, const std::vector<Json>& positions) {
  const Shape own = strides_of(x.shape);
  Shape shape = {}, strides = {};
  int64_t offset = 0;
  int dim = 0, named = 0;
  const auto is_ellipsis = [](const Json& position) { return position.has_keys({"ellipsis"}); };
  for (const Json& position : positions) named += !is_ellipsis(position) && !position.is(Json::Kind::kNull);
  const auto add = [&](int64_t size, int64_t stride) {
    shape.sizes[shape.rank++] = size;
    strides.sizes[strides.rank++] = stride;
  };
  if (named > x.shape.rank || positions.size() + static_cast<size_t>(x.shape.rank) > STOMPP_MAX_RANK)
    return bad_argument("more positions than dimensions");
  for (const Json& position : positions) {
    const Json* slice = position.has_keys({"slice"}) ? position.find("slice") : nullptr;
    if (is_ellipsis(position)) {
      for (; dim < x.shape.rank - named; ++dim) add(x.shape.sizes[dim], own.sizes[dim]);
    } else if (position.is(Json::Kind::kNull)) {
      add(1, 0);
    } else if (slice != nullptr && slice->is(Json::Kind::kList) && slice->items.size() == 3) {
      const int64_t size = x.shape.sizes[dim];
      // No step is longer than the value, whose stride is multiplied by it.
      const int64_t step = slice->items[2].is(Json::Kind::kNull) ? 1 : std::min(slice->items[2].integer, size);
      int64_t begin = 0, end = 0;
      if (!end_of(slice->items[0], 0, size, &begin) || !end_of(slice->items[1], size, size, &end) || step < 1 ||
          begin >= end)
        return unsupported("a slice that is empty, or whose ends are no numbers");
      offset += begin * own.sizes[dim];
      add(ceil_div(end - begin, step), own.sizes[dim] * step);
      ++dim;
      --named;
    } else if (position.is(Json::Kind::kInteger)) {
      const int64_t index = position.integer + (position.integer < 0 ? x.shape.sizes[dim] : 0);
      if (index < 0 || index >= x.shape.sizes[dim]) return bad_argument("a position beyond the value");
      offset += index * own.sizes[dim++];
      --named;
    } else {
      return unsupported("positions other than numbers and slices");
    }
  }
  for (; dim < x.shape.rank; ++dim) add(x.shape.sizes[dim], own.sizes[dim]);
  if (shape.rank == 0) return unsupported("a single number");
  return copy(p, x, shape, Nest(shape, strides, strides), offset);
}

Outcome plan_getitem(Planning& p) {
  const Json &position = *p.find_any("b"), &argument = *p.find_any("a");
  const std::vector<Value>* results = p.results_of(*node_in(argument));
  const bool number = position.is(Json::Kind::kInteger);
  if (results->size() > 1) {
    if (!number || position.integer < 0 || position.integer >= static_cast<int64_t>(results->size()))
      return bad_argument("a position beyond the results of a layer");
    p.give((*results)[static_cast<size_t>(position.integer)]);
    return {};
  }
  Value x = results->front();
  if (x.kind == Value::Kind::kSizes) {
    const int64_t index = position.integer + (position.integer < 0 ? x.shape.rank : 0);
    if (!number || index < 0 || index >= x.shape.rank) return bad_argument("a position beyond the sizes");
    x.shape = shape_of({x.shape.sizes[index]});
    p.give(x);
    return {};
  }
  STOMPP_TRY(p.floats("a", &x));
  return plan_part(p, x, position.is(Json::Kind::kList) ? position.items : std::vector<Json>{position});
}

Outcome plan_cat(Planning& p) {
  std::vector<Value> parts;
  for (const Json& item : p.find("tensors")->items) {
    STOMPP_TRY(p.value_in(item, &parts.emplace_back()));
    if (parts.back().kind == Value::Kind::kSizes || parts.back().kind != parts[0].kind)
      return bad_argument("floats and bits side by side");
  }
  Shape shape = parts[0].shape;
  int dim = 0;
  STOMPP_TRY(p.dimension("dim", 0, shape.rank, &dim));
  shape.sizes[dim] = 0;
  for (const Value& part : parts) {
    Shape others = part.shape;
    if (others.rank != shape.rank) return bad_argument("values of other dimensions");
    others.sizes[dim] = shape.sizes[dim];
    if (!(others == shape)) return bad_argument("sizes that do not fit each other");
    shape.sizes[dim] += part.shape.sizes[dim];
  }
  const bool bits = parts[0].kind == Value::Kind::kBits;
  for (size_t i = 0; bits && i + 1 < parts.size(); ++i)
    if (dim != shape.rank - 1 || parts[i].last() % kWordBits != 0)
      return unsupported("bits side by side that do not fill their words");
  Value y;
  STOMPP_TRY(p.make(parts[0].kind, shape, &y));
  // What lies within one step of `dim` is one run of floats, or of words.
  const int64_t step = bits ? 1 : strides_of(shape).sizes[dim];
  const auto run_of = [=](const Shape& s) { return bits ? words_for(s.sizes[dim]) : step * s.sizes[dim]; };
  p.run([=](const Frame& f) {
    uint8_t* to = f.bytes(y);
    const int64_t run = run_of(shape) * 4;
    for (const Value& part : parts) {
      const int64_t count = run_of(part.shape) * 4;
      const uint8_t* from = f.bytes(part);
      for (int64_t i = 0; i < y.bytes() / run; ++i)
        std::memcpy(to + i * run, from + i * count, static_cast<size_t>(count));
      to += count;
    }
    return Status::ok();
  });
  return {};
}

Outcome plan_sizes(Planning& p) {
  Value x, y;
  STOMPP_TRY(p.floats("input", &x));
  y.kind = Value::Kind::kSizes;
  y.shape = x.shape;
  if (p.find("dim") != nullptr) {
    int dim = 0;
    STOMPP_TRY(p.dimension("dim", 0, x.shape.rank, &dim));
    y.shape = shape_of({x.shape.sizes[dim]});
  }
  p.give(y);
  return {};
}

Outcome plan_identity(Planning& p) {
  Value x;
  if (p.flag("training", false)) return unsupported("a dropout that drops");
  STOMPP_TRY(p.value_in(*p.find("input"), &x));
  return same(p, x, x.shape);
}

constexpr const char *kX = "input:tensor", *kFlatten = "input:tensor start_dim=dim end_dim=dim";
constexpr const char *kSizes = "input:tensor *shape:sizes", *kSwap = "input:tensor dim0:dim dim1:dim";

constexpr Operation kOperations[] = {
    {" Flatten ", "start_dim:dim end_dim:dim", kX, plan_flatten, nullptr, true},
    {" torch.flatten .flatten ", nullptr, kFlatten, plan_flatten, nullptr, true},
    {" torch.reshape .reshape .view ", nullptr, kSizes, plan_reshape, nullptr, true},
    {" torch.permute .permute ", nullptr, "input:tensor *dims:dims", plan_permute, nullptr, true},
    {" torch.transpose .transpose ", nullptr, kSwap, plan_permute, nullptr, true},
    {" torch.squeeze .squeeze ", nullptr, "input:tensor dim:dim", plan_squeeze, nullptr, true},
    {" torch.unsqueeze .unsqueeze ", nullptr, "input:tensor dim:dim", plan_unsqueeze, nullptr, true},
    {" getitem ", nullptr, "a:tensor b:any", plan_getitem, nullptr, true},
    {" torch.cat torch.concat torch.concatenate ", nullptr, "tensors:tensors dim=dim", plan_cat},
    {" getattr ", nullptr, "input:tensor name:shape", plan_sizes},
    {" .size ", nullptr, "input:tensor dim=dim", plan_sizes},
    {" Identity .contiguous ", "", kX, plan_identity, nullptr, true},
    {" Dropout Dropout2d ", "p:rate", kX, plan_identity, nullptr, true},
    {" F.dropout F.dropout2d ", nullptr, "input:tensor p=number training=bool inplace=bool", plan_identity, nullptr,
     true},
};

}  // namespace

OperationList shape_operations() { return {kOperations, std::size(kOperations)}; }

}  // namespace stompp::runtime
