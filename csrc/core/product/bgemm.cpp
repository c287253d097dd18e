#include "core/product/bgemm.h"

#include "core/base/scratch.h"
#include "core/base/workers.h"
#include "core/product/blocks.h"

namespace stompp {
namespace {

struct MatrixRows {
  const uint8_t* a;
  int64_t row_bytes, read_bytes;

  int64_t runs_per_row() const { return 1; }
  int64_t run_bytes() const { return read_bytes; }
  BitImage image() const { return {}; }
  int64_t memory_bytes() const { return 0; }
  int64_t gather(int64_t first, int64_t count, int64_t, const uint8_t** runs, uint8_t*, TapSpan* spans) const {
    for (int64_t r = 0; r < count; ++r) runs[r] = a + (first + r) * row_bytes;
    spans[0] = {count, {0, 1, 0, 1}};
    return 1;
  }
};

struct BatchedProduct {
  const ProductKernels& kernels;
  const uint32_t *a, *b;
  const BatchedShape& shape;
  int32_t* out;
  Parallel pool;  // for one product

  WeightShape weight_shape() const { return {shape.N, shape.K, 1, 1, 1}; }
  int64_t tasks() const { return shape.batch; }
};

// Packs right operands, one after the other, into memory of its own, and multiplies.
class BatchedWorker {
 public:
  explicit BatchedWorker(const BatchedProduct& product)
      : p_(product),
        bytes_(packed_bytes(p_.weight_shape(), p_.kernels.layout)),
        packed_(scratch_of<uint8_t>(bytes_)),
        failed_(packed_ == nullptr) {}
  bool failed() const { return failed_; }

  void run(int64_t i) {
    const BatchedShape& s = p_.shape;
    const int64_t row_words = words_for(s.K);
    const WeightShape shape = p_.weight_shape();
    PackedWeight weight;
    Status status = pack_weight_words(p_.b + i * s.N * row_words, shape, p_.kernels.layout, packed_.get(), p_.pool);
    if (status.is_ok()) status = view_packed(packed_.get(), bytes_, shape, &weight);
    Epilogue sums;
    sums.N = s.N;
    sums.out = p_.out + i * s.M * s.N;
    if (status.is_ok()) status = bgemm(p_.a + i * s.M * row_words, s.M, weight, sums, p_.pool);
    failed_ = !status.is_ok();
  }

 private:
  const BatchedProduct& p_;
  const int64_t bytes_;
  const Scratch<uint8_t> packed_;
  bool failed_;
};

}  // namespace

Status bgemm(const uint32_t* a, int64_t M, const PackedWeight& weight, const Epilogue& epilogue, const Parallel& pool) {
  const ProductKernels* kernels = active_product_kernels();
  if (kernels == nullptr) return no_implementation();
  if (weight.shape.taps() != 1 || weight.shape.groups != 1)
    return Status::error("bgemm needs a weight packed from a matrix");
  std::unique_ptr<uint8_t[]> storage;
  PackedWeight readable;
  const Status status = in_layout(kernels->layout, weight, &storage, &readable, pool);
  if (!status.is_ok()) return status;
  const int64_t row_bytes = words_for(weight.shape.in_channels) * kWordBytes;
  const int64_t k_bytes = readable.layout.row_bytes(weight.shape);
  const MatrixRows rows = {reinterpret_cast<const uint8_t*>(a), row_bytes, row_bytes < k_bytes ? row_bytes : k_bytes};
  return multiply(*kernels, rows, M, readable, epilogue, pool);
}

Status check_batched(const BatchedShape& s) {
  if (s.batch < 0 || s.M < 0) return Status::error("a batch of products must have no negative size");
  return check_shape(WeightShape{s.N, s.K, 1, 1, 1});
}

Status batched_bgemm(const uint32_t* a, const uint32_t* b, const BatchedShape& shape, int32_t* out,
                     const Parallel& pool) {
  const ProductKernels* kernels = active_product_kernels();
  if (kernels == nullptr) return no_implementation();
  if (shape.M == 0) return Status::ok();
  // Whole products are shared by the threads where each gets one, else the threads share each product.
  const bool whole = shape.batch >= pool.threads;
  const BatchedProduct product = {*kernels, a, b, shape, out, whole ? kThisThread : pool};
  return run_tasks<BatchedWorker>(product, whole ? pool : kThisThread);
}

}  // namespace stompp
