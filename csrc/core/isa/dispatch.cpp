#include "core/isa/dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>

#include "core/isa/amx/amx.h"
#include "core/isa/avx2/avx2.h"
#include "core/isa/avx512/avx512.h"
#include "core/isa/neon/neon.h"
#include "core/isa/scalar/scalar.h"
#include "core/isa/wasm/wasm.h"

namespace stompp {
namespace {

const Implementation* const kImplementations[] = {
#if STOMPP_HAS_AMX
    &amx::kImplementation,
#endif
#if defined(__x86_64__)
    &avx512::kImplementation, &avx2::kImplementation,
#endif
#if defined(__aarch64__)
    &neon::kImplementation,
#endif
#if defined(__wasm_simd128__)
    &wasm::kImplementation,
#endif
    &scalar::kImplementation,
};

const Implementation* find(const char* name) {
  for (const Implementation* candidate : kImplementations) {
    const bool wanted = name == nullptr || *name == '\0' || std::strcmp(candidate->name, name) == 0;
    if (wanted && is_supported(*candidate)) return candidate;
  }
  return nullptr;
}

std::atomic<const Implementation*>& active() {
  static std::atomic<const Implementation*> value{find(std::getenv("STOMPP_CPU"))};
  return value;
}

thread_local const Implementation* used_here = nullptr;  // by this thread, or null

template <class Table>
const Table* active_table(const Table* Implementation::* table) {
  const Implementation* implementation = active_implementation();
  return implementation == nullptr ? nullptr : implementation->*table;
}

}  // namespace

const Implementation* const* implementations(size_t* count) {
  *count = sizeof(kImplementations) / sizeof(kImplementations[0]);
  return kImplementations;
}

const Implementation* active_implementation() {
  return used_here != nullptr ? used_here : active().load(std::memory_order_relaxed);
}

UseImplementation::UseImplementation(const Implementation& implementation) : before_(used_here) {
  used_here = &implementation;
}

UseImplementation::~UseImplementation() { used_here = before_; }

const ProductKernels* active_product_kernels() { return active_table(&Implementation::product); }
const PlaneKernels* active_plane_kernels() { return active_table(&Implementation::planes); }
const PackKernels* active_pack_kernels() { return active_table(&Implementation::signs); }
const MaskKernels* active_mask_kernels() { return active_table(&Implementation::masks); }
const SignedSumKernels* active_signed_sum_kernels() { return active_table(&Implementation::signed_sums); }
const FloatConvKernels* active_float_conv_kernels() { return active_table(&Implementation::float_conv); }

void select_implementation(const Implementation& implementation) {
  active().store(&implementation, std::memory_order_relaxed);
}

Status select_implementation(const char* name) {
  const Implementation* found = find(name);
  if (found == nullptr) return Status::error("unknown implementation, or one that this processor does not support");
  active().store(found, std::memory_order_relaxed);
  return Status::ok();
}

}  // namespace stompp
