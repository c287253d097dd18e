// How code is written once for every instruction set.
//
// A file named *_body.h holds functions without a target of their own. Each instruction set includes it in a namespace
// of its own, after it has defined
//
//   STOMPP_TARGET   the attribute that its functions are compiled with; empty for the baseline
//
// and the compiler makes another copy for that target. A function that a table points to is declared STOMPP_TARGET, and
// one that is inlined into such functions STOMPP_TARGET_INLINE. A body has no include guard and includes nothing, as it
// stands in the middle of a namespace: what it uses comes from this header and from its family's kernels.h.
//
// isa/README.md has a commented skeleton to copy for a new instruction set.
#pragma once

#include <cstring>
#include <utility>

#include "core/base/bits.h"
#include "core/base/float_types.h"
#include "core/base/fused.h"

#define STOMPP_TARGET_INLINE STOMPP_TARGET __attribute__((always_inline)) inline
