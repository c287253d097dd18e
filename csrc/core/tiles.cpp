#include "core/tiles.h"

namespace stompp {

Status in_layout_of(const Implementation& implementation, const PackedWeight& weight,
                    std::unique_ptr<uint8_t[]>* storage, PackedWeight* result, const Parallel& pool) {
  if (weight.layout.id == implementation.layout.id) {
    *result = weight;
    return Status::ok();
  }
  const WeightShape& shape = weight.shape;
  const int64_t bytes = packed_bytes(shape, implementation.layout);
  const int64_t word_count = shape.out_channels * shape.taps() * words_for(shape.in_channels);
  std::unique_ptr<uint32_t[]> words(new (std::nothrow) uint32_t[static_cast<size_t>(word_count)]);
  storage->reset(new (std::nothrow) uint8_t[static_cast<size_t>(bytes)]);
  if (words == nullptr || *storage == nullptr) return Status::error("out of memory");
  Status status = unpack_weight_words(weight, words.get(), pool);
  if (status.is_ok()) status = pack_weight_words(words.get(), shape, implementation.layout, storage->get(), pool);
  if (status.is_ok()) status = view_packed(storage->get(), bytes, shape, result);
  return status;
}

}  // namespace stompp
