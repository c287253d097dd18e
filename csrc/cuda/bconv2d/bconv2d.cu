#include "cuda/bconv2d/bconv2d.h"

#include <climits>

#include "cuda/bconv2d/small_groups.h"
#include "cuda/product/choose.h"

namespace stompp::cuda {

Status bconv2d(const uint32_t* x, const Conv2dShape& shape, const DeviceWeight& weight, const Epilogue& epilogue,
               const Device& device, Stream stream) {
  const int64_t rows = shape.batch * shape.out_height(weight.shape) * shape.out_width(weight.shape);
  if (rows == 0) return Status::ok();
  const Status status = check_product(rows, weight.shape);
  if (!status.is_ok()) return status;
  if (shape.height + 2 * shape.padding_h > INT_MAX || shape.width + 2 * shape.padding_w > INT_MAX)
    return Status::error("a convolution on the GPU has a padded input of fewer than 2^31 rows and columns");
  if (weight.shape.small_groups()) return small_groups_conv2d(x, shape, weight, epilogue, stream);
  // Groups whose outputs are no multiple of a word write bits of the same one.
  const bool words_are_shared = weight.shape.groups > 1 && weight.shape.group_outputs() % kWordBits != 0;
  uint32_t* bits =
      epilogue.kind == Epilogue::Kind::kThreshold ? static_cast<uint32_t*>(epilogue.out) : epilogue.sign_words;
  if (words_are_shared && bits != nullptr) {
    const size_t bytes = static_cast<size_t>(rows * words_for(epilogue.N) * kWordBytes);
    const Status cleared = clear_async(bits, bytes, stream);
    if (!cleared.is_ok()) return cleared;
  }
  const Product product = conv2d_product(x, shape, weight, epilogue);
  return run_product(product, device, stream);
}

}  // namespace stompp::cuda
