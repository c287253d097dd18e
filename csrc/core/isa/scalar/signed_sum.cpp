#include "core/isa/scalar/scalar.h"

#define STOMPP_TARGET

namespace stompp {
namespace scalar {
namespace {

#include "core/binary_weight/channel_sum_body.h"
#include "core/binary_weight/signed_sum_body.h"

}  // namespace

constexpr SignedSumKernels kSignedSumKernels = signed_sum_kernels();

}  // namespace scalar
}  // namespace stompp
