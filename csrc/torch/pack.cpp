#include "core/signs/pack.h"

#include "core/isa/dispatch.h"
#include "torch/host.h"
#include "torch/products.h"

namespace stompp::binding {
namespace {

const Implementation& active() {
  const Implementation* implementation = active_implementation();
  if (implementation == nullptr) check(no_implementation());
  return *implementation;
}

// x of shape [images, pixels..., K] whose channels are planes, as an NCHW tensor permuted to NHWC is.
struct PlaneView {
  int64_t images, image_stride, pixels, stride;
};

std::optional<PlaneView> plane_view(const Tensor& x) {
  if (x.dim() < 3 || x.numel() == 0) return std::nullopt;
  PlaneView view = {x.size(0), x.stride(0), 1, x.stride(x.dim() - 1)};
  for (int64_t dim = x.dim() - 2; dim >= 1; --dim) {
    if (x.size(dim) != 1 && x.stride(dim) != view.pixels) return std::nullopt;
    view.pixels *= x.size(dim);
  }
  // Few pixels side by side are packed faster from a copy.
  return view.pixels >= 16 ? std::optional<PlaneView>(view) : std::nullopt;
}

Tensor pack(const char* op, const Tensor& x, const Limits& limits) {
  const FloatType type = short_float_type(op, "x", x.scalar_type());
  const std::optional<PlaneView> planes = x.is_contiguous() ? std::nullopt : plane_view(x);
  const Tensor dense = planes.has_value() ? x : row_major(x);
  std::vector<int64_t> sizes = sizes_of(x);
  const int64_t K = sizes.back();
  sizes.back() = words_for(K);
  Tensor words = new_tensor(sizes, ScalarType::Int);
  uint32_t* out = static_cast<uint32_t*>(words.data_ptr());
  if (planes.has_value())
    check(pack_signs_planes(x.data_ptr(), type, planes->images, planes->image_stride, planes->pixels, K, planes->stride,
                            limits, out, torch_pool()));
  else
    check(pack_signs(dense.data_ptr(), type, x.numel() / K, K, limits, out, torch_pool()));
  return words;
}

void check_last_dimension(const char* op, const Tensor& x) {
  check(x.dim() >= 1, op, ": x must have at least one dimension");
  check(x.size(x.dim() - 1) >= 1, op, ": the last dimension of x must not be empty");
}

Tensor pack_signs_cpu(const Tensor& x) {
  check_last_dimension("pack_signs", x);
  return pack("pack_signs", x, {});
}

Tensor pack_outside_cpu(const Tensor& x, const Tensor& low, const Tensor& high) {
  check_last_dimension("pack_outside", x);
  check_dtype("pack_outside", "low", low, ScalarType::Float, "float32");
  check_dtype("pack_outside", "high", high, ScalarType::Float, "float32");
  check_shape("pack_outside", "low", low, {x.size(x.dim() - 1)});
  check_shape("pack_outside", "high", high, {x.size(x.dim() - 1)});
  const Tensor dense_low = dense_of(low), dense_high = dense_of(high);
  return pack("pack_outside", x,
              {static_cast<const float*>(dense_low.data_ptr()), static_cast<const float*>(dense_high.data_ptr())});
}

Tensor unpack_signs_cpu(const Tensor& words, int64_t K, ScalarType dtype) {
  const std::optional<FloatType> type = float_type(dtype);
  check(type.has_value(), "unpack_signs: dtype must be a floating-point type");
  const Tensor dense = words_of("unpack_signs", "words", words);
  check(words.dim() >= 1 && K >= 1 && words.size(words.dim() - 1) == words_for(K), "unpack_signs: words have shape ",
        ShapeOf{words}, ", whose last dimension must be ceil(K / 32) for K = ", K);
  std::vector<int64_t> sizes = sizes_of(words);
  sizes.back() = K;
  Tensor out = new_tensor(sizes, dtype);
  check(unpack_signs(word_pointer(dense), words.numel() / words_for(K), K, out.data_ptr(), *type, torch_pool()));
  return out;
}

Tensor pack_weight_words_cpu(const Tensor& words, Ints shape_argument, int64_t groups) {
  const WeightShape shape = weight_shape(shape_argument, groups);
  check_shape("pack_weight_words", "words", words, words_sizes(shape, shape_argument.size() == 2));
  const Tensor dense = words_of("pack_weight_words", "words", words);
  const WeightLayout& layout = active().product->layout;
  const std::vector<int64_t> sizes = {packed_bytes(shape, layout)};
  Tensor out = new_tensor(sizes, ScalarType::Byte);
  check(pack_weight_words(word_pointer(dense), shape, layout, static_cast<uint8_t*>(out.data_ptr()), torch_pool()));
  return out;
}

Tensor unpack_weight_words_cpu(const Tensor& weight, Ints shape_argument, int64_t groups) {
  const WeightShape shape = weight_shape(shape_argument, groups);
  const WeightArgument argument = weight_argument("unpack_weight_words", weight, shape);
  Tensor words = new_tensor(words_sizes(shape, shape_argument.size() == 2), ScalarType::Int);
  check(unpack_weight_words(argument.view, static_cast<uint32_t*>(words.data_ptr()), torch_pool()));
  return words;
}

Tensor pack_weight_cpu(const Tensor& w) {
  check(w.dim() == 2, "pack_weight: w must be [N, K], got ", ShapeOf{w});
  return pack_weight_words_cpu(pack_signs_cpu(w), w.sizes(), 1);
}

Tensor pack_conv_weight_cpu(const Tensor& w, int64_t groups) {
  check(w.dim() == 4, "pack_conv_weight: w must be [O, I/groups, kh, kw], got ", ShapeOf{w});
  const Tensor channels_last = torch::stable::transpose(torch::stable::transpose(w, 1, 2), 2, 3);
  return pack_weight_words_cpu(pack_signs_cpu(channels_last), w.sizes(), groups);
}

}  // namespace

WeightArgument weight_argument(const char* op, const Tensor& weight, const WeightShape& expected) {
  check_dtype(op, "weight", weight, ScalarType::Byte, "uint8, made by pack_weight or pack_conv_weight");
  check(weight.dim() == 1, op, ": weight must be one-dimensional packed bytes, got ", ShapeOf{weight});
  WeightArgument argument = {dense_of(weight), {}};
  const Status status = view_packed(static_cast<const uint8_t*>(argument.data.data_ptr()), argument.data.numel(),
                                    expected, &argument.view);
  check(status.is_ok(), op, ": ", status.message());
  return argument;
}

}  // namespace stompp::binding

STABLE_TORCH_LIBRARY_IMPL(stompp, CPU, m) {
  using namespace stompp::binding;
  m.impl("pack_signs", TORCH_BOX(&pack_signs_cpu));
  m.impl("pack_outside", TORCH_BOX(&pack_outside_cpu));
  m.impl("unpack_signs", TORCH_BOX(&unpack_signs_cpu));
  m.impl("pack_weight", TORCH_BOX(&pack_weight_cpu));
  m.impl("pack_conv_weight", TORCH_BOX(&pack_conv_weight_cpu));
  m.impl("pack_weight_words", TORCH_BOX(&pack_weight_words_cpu));
  m.impl("unpack_weight_words", TORCH_BOX(&unpack_weight_words_cpu));
}
