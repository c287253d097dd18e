#include "core/isa/wasm/wasm.h"

#if defined(__wasm_simd128__)

#define STOMPP_TARGET

namespace stompp {
namespace wasm {
namespace {

#include "core/binary_weight/channel_sum_body.h"
#include "core/binary_weight/signed_sum_body.h"

}  // namespace

constexpr SignedSumKernels kSignedSumKernels = signed_sum_kernels();

}  // namespace wasm
}  // namespace stompp

#endif
