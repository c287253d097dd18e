#include "core/isa/avx2/lanes.h"

#if defined(__x86_64__)

#define STOMPP_TARGET STOMPP_AVX2

namespace stompp {
namespace avx2 {
namespace {

#include "core/float_conv/float_tile_body.h"
#include "core/float_conv/rounded_rows_body.h"
#include "core/float_conv/winograd_body.h"

}  // namespace

constexpr FloatConvKernels kFloatConvKernels = float_conv_kernels();

}  // namespace avx2
}  // namespace stompp

#endif
