#include "cuda/bgemm/bgemm.h"

#include "cuda/product/choose.h"

namespace stompp::cuda {

Status bgemm(const uint32_t* a, int64_t M, const DeviceWeight& weight, const Epilogue& epilogue, const Device& device,
             Stream stream) {
  if (M == 0) return Status::ok();
  const Status status = check_product(M, weight.shape);
  if (!status.is_ok()) return status;
  const Product product = matrix_product(a, M, weight, epilogue);
  return run_product(product, device, stream);
}

}  // namespace stompp::cuda
