#include "cuda/product/product.h"

#include <climits>

namespace stompp::cuda {
namespace {

// The largest granule that every run of words which a row reads is a multiple of, and x aligned to.
int granule_of(const uint32_t* x, int64_t run_words, int64_t pixel_words) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(x);
  for (const int granule : {4, 2})
    if (run_words % granule == 0 && pixel_words % granule == 0 && address % (granule * kWordBytes) == 0) return granule;
  return 1;
}

Product make_product(const DeviceWeight& weight, const Epilogue& epilogue) {
  const WeightLayout layout = WeightLayout::of(weight.shape);
  Product product = {};
  product.panels = weight.words + layout.sums_words();
  product.sums = reinterpret_cast<const int32_t*>(weight.words);
  product.group_outputs = static_cast<int>(weight.shape.group_outputs());
  product.panels_per_group = static_cast<int>(layout.panels_per_group);
  product.outputs_padded = static_cast<int>(layout.outputs_padded());
  product.sum_count = static_cast<int>(layout.sums);
  product.K = static_cast<int>(weight.shape.K());
  product.epilogue = epilogue;
  product.rows.k_blocks = static_cast<int>(layout.k_blocks);
  product.rows.words = static_cast<int>(weight.shape.taps() * words_for(weight.shape.in_channels));
  product.rows.group_channels = static_cast<int>(weight.shape.in_channels);
  return product;
}

}  // namespace

Status check_product(int64_t rows, const WeightShape& weight) {
  constexpr int64_t kMaxGrid = 65535;  // of a grid's second and third dimension
  if (rows > INT_MAX - 1024) return Status::error("a product on the GPU has fewer than 2^31 - 1024 rows or pixels");
  if (weight.out_channels > kMaxGrid * kWordBits || (weight.groups > kMaxGrid && !weight.small_groups()))
    return Status::error("a product on the GPU has at most 2,097,120 outputs and 65,535 groups");
  if (weight.kernel_h > 255 || weight.kernel_w > 255)
    return Status::error("a convolution on the GPU has a kernel of at most 255 x 255");
  return Status::ok();
}

Product matrix_product(const uint32_t* x, int64_t M, const DeviceWeight& weight, const Epilogue& epilogue) {
  Product product = make_product(weight, epilogue);
  Rows& rows = product.rows;
  rows.x = x;
  rows.count = static_cast<int>(M);
  rows.is_matrix = true;
  rows.pixel_words = rows.words;
  rows.granule = granule_of(x, rows.words, rows.words);
  rows.kernel_h = rows.kernel_w = 1;
  return product;
}

Product conv2d_product(const uint32_t* x, const Conv2dShape& shape, const DeviceWeight& weight,
                       const Epilogue& epilogue) {
  Product product = make_product(weight, epilogue);
  Rows& rows = product.rows;
  const int64_t out_h = shape.out_height(weight.shape), out_w = shape.out_width(weight.shape);
  const int64_t tap_words = words_for(weight.shape.in_channels);
  rows.x = x;
  rows.count = static_cast<int>(shape.batch * out_h * out_w);
  rows.is_matrix = false;
  rows.pixel_words = static_cast<int>(words_for(shape.channels));
  const bool on_words = weight.shape.groups == 1 || weight.shape.in_channels % kWordBits == 0;
  rows.granule = on_words ? granule_of(x, tap_words, rows.pixel_words) : 0;
  rows.height = static_cast<int>(shape.height);
  rows.width = static_cast<int>(shape.width);
  rows.kernel_h = static_cast<int>(weight.shape.kernel_h);
  rows.kernel_w = static_cast<int>(weight.shape.kernel_w);
  rows.stride_h = static_cast<int>(shape.stride_h);
  rows.stride_w = static_cast<int>(shape.stride_w);
  rows.padding_h = static_cast<int>(shape.padding_h);
  rows.padding_w = static_cast<int>(shape.padding_w);
  rows.dilation_h = static_cast<int>(shape.dilation_h);
  rows.dilation_w = static_cast<int>(shape.dilation_w);
  rows.outside = 1 - shape.padding_value;
  rows.image_pixels = Divider::by(static_cast<uint32_t>(out_h * out_w));
  rows.out_width = Divider::by(static_cast<uint32_t>(out_w));
  rows.tap_words = Divider::by(static_cast<uint32_t>(tap_words));
  rows.tap_columns = Divider::by(static_cast<uint32_t>(weight.shape.kernel_w));
  return product;
}

}  // namespace stompp::cuda
