// Portable C++: runs anywhere, and is the fallback that every faster implementation is compared with.
#pragma once

#include "core/implementation.h"

namespace stompp {
namespace scalar {

extern const Implementation kImplementation;

}  // namespace scalar
}  // namespace stompp
