#include "core/signs/max_pool.h"

#include "torch/host.h"

namespace stompp::binding {
namespace {

constexpr const char* kOp = "max_pool2d_signs";

Tensor max_pool2d_signs_cpu(const Tensor& x_words, Ints kernel, Ints stride, Ints padding, Ints dilation,
                            bool ceil_mode) {
  const Tensor x = words_of(kOp, "x_words", x_words);
  check(x.dim() == 4, kOp, ": x_words must be [N, H, W, C_words], got ", ShapeOf{x});
  check(kernel.size() == 2 && stride.size() == 2 && padding.size() == 2 && dilation.size() == 2, kOp,
        ": kernel, stride, padding and dilation need two values each");
  const MaxPoolShape shape = {x.size(0), x.size(1),  x.size(2),  x.size(3),   kernel[0],   kernel[1], stride[0],
                              stride[1], padding[0], padding[1], dilation[0], dilation[1], ceil_mode};
  check(kOp, check_max_pool(shape));
  Tensor out = new_tensor({shape.batch, shape.out_height(), shape.out_width(), shape.words}, ScalarType::Int);
  check(kOp, max_pool2d_signs(word_pointer(x), shape, static_cast<uint32_t*>(out.data_ptr()), torch_pool()));
  return out;
}

}  // namespace
}  // namespace stompp::binding

STABLE_TORCH_LIBRARY_IMPL(stompp, CPU, m) {
  using namespace stompp::binding;
  m.impl("max_pool2d_signs", TORCH_BOX(&max_pool2d_signs_cpu));
}
