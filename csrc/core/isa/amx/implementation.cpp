#include "core/isa/amx/amx.h"

#if STOMPP_HAS_AMX

#include <cpuid.h>

#include "core/isa/amx/bf16_tiles.h"
#include "core/isa/amx/permission.h"
#include "core/isa/avx512/avx512.h"

namespace stompp {
namespace amx {
namespace {

constexpr unsigned kGfni = 1u << 8;                                                // leaf 7, ECX
constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;  // leaf 7, EDX
constexpr uint32_t kTileState = 1u << 17 | 1u << 18;                               // XCR0: configuration and data
constexpr TileBounds kBounds = {96, 256, 128, 192, 64};

bool has_instructions() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
  return (c & kGfni) != 0 && (d & kAmxTile) != 0 && (d & kAmxInt8) != 0;
}

// Only called where AVX-512 is there, and so the instruction XGETBV.
bool state_is_enabled() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kTileState) == kTileState;
}

const char* missing_now() {
  if (const char* reason = avx512::kImplementation.missing()) return reason;
  if (!has_instructions()) return kNoInstructions;
  if (!state_is_enabled()) return "the operating system does not save the tile registers";
  if (!request_tiles()) return "the operating system refuses permission to use the tile registers";
  return nullptr;
}

const char* missing() {
  static const char* const reason = missing_now();  // permission is asked for once a process
  return reason;
}

ProductKernels product_kernels() {
  ProductKernels kernels = avx512::kProductKernels;
  kernels.tiles.bounds = kBounds;
  kernels.tiles.multiply = multiply;
  return kernels;
}

bool has_bf16_tiles() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) != 0 && (d & kAmxBf16) != 0;
}

FloatConvKernels float_conv_kernels() {
  FloatConvKernels kernels = avx512::kFloatConvKernels;
  if (!has_bf16_tiles()) return kernels;
  using Bf16 = Bf16Tiles<ProcessorTiles>;
  kernels.bf16.multiply = Bf16::multiply;
  kernels.bf16.begin = Bf16::begin;
  kernels.bf16.end = Bf16::end;
  return kernels;
}

constexpr Implementation implementation() {
  Implementation result = {};
  result.name = "amx";
  result.description = "tiles of int8 for many rows, AVX-512 for everything else";
  result.missing = missing;
  result.product = &kProductKernels;
  result.planes = &avx512::kPlaneKernels;
  result.signs = &avx512::kPackKernels;
  result.masks = &avx512::kMaskKernels;
  result.signed_sums = &avx512::kSignedSumKernels;
  result.float_conv = &kFloatConvKernels;
  return result;
}

}  // namespace

// AVX-512's tables are constants: they are there before these are copied from them.
const ProductKernels kProductKernels = product_kernels();
const FloatConvKernels kFloatConvKernels = float_conv_kernels();
constexpr Implementation kImplementation = implementation();

}  // namespace amx
}  // namespace stompp

#endif
