#include "core/isa/neon/neon.h"

#if defined(__aarch64__)

#define STOMPP_TARGET

namespace stompp {
namespace neon {
namespace {

#include "core/binary_weight/channel_sum_body.h"
#include "core/binary_weight/signed_sum_body.h"

}  // namespace

constexpr SignedSumKernels kSignedSumKernels = signed_sum_kernels();

}  // namespace neon
}  // namespace stompp

#endif
