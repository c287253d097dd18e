// Linux gives the registers of tiles, 8 KB a thread, only to processes that ask for them.
#pragma once

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace stompp {
namespace amx {

// Asks for the whole process; asking again changes nothing. Linux refuses where a thread's alternate signal stack is
// too small for the registers, for example.
inline bool request_tiles() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace amx
}  // namespace stompp
