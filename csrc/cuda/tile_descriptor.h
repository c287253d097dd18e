// How wgmma is told where a tile lies in shared memory (PTX ISA, "Matrix Descriptor Format").
//
// A tile of rows of 64 bytes, in groups of eight that are 512 bytes each, with the chunks of a row swizzled as in
// weight_layout.h: K-major, with the 64-byte swizzle. It begins at a multiple of 512 bytes, or 32 bytes into one for
// the second half of K.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define STOMPP_DEVICE_TOO __host__ __device__
#else
#define STOMPP_DEVICE_TOO
#endif

namespace stompp::cuda {

constexpr int kTileGroupBytes = 512;

// `address`: in shared memory. Bits 0 to 13 are the address and bits 32 to 45 the distance of groups, both in units of
// 16 bytes; bits 16 to 29 mean nothing for swizzled rows, and are 1; bits 62 and 63 name the swizzle.
STOMPP_DEVICE_TOO constexpr uint64_t tile_descriptor(uint64_t address) {
  return (address >> 4 & 0x3fff) | uint64_t{1} << 16 | uint64_t{kTileGroupBytes >> 4} << 32 | uint64_t{2} << 62;
}

}  // namespace stompp::cuda
