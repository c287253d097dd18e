#include "core/isa/scalar/scalar.h"

#define STOMPP_TARGET

namespace stompp {
namespace scalar {
namespace {

#include "core/signs/pack_body.h"

}  // namespace

constexpr PackKernels kPackKernels = pack_kernels();

}  // namespace scalar
}  // namespace stompp
