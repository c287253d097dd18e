// Float rows to sign bits and back.
#pragma once

#include <cstdint>

#include "core/float_types.h"
#include "core/parallel.h"
#include "core/status.h"

namespace stompp {

// x: [rows][K] contiguous, fp32, fp16 or bf16; words: [rows][words_for(K)].
Status pack_signs(const void* x, FloatType type, int64_t rows, int64_t K, uint32_t* words, const Parallel& pool);

// The inverse to +1 / -1 of `type`.
Status unpack_signs(const uint32_t* words, int64_t rows, int64_t K, void* out, FloatType type, const Parallel& pool);

}  // namespace stompp
