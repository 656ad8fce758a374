// How a product of a warpgroup (compute capability 9.0a) is told where an operand in shared memory
// lies: one word, without an instruction of its own.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace gralora::ptx {

/// A product's view of an operand from its part of 64 x 64 elements on, at `depth`: rows of 128
/// bytes, swizzled in groups of eight, 1024 bytes apart. Where the depth is contiguous it lies
/// along the 128 bytes; else the next part, of 64 more columns, lies 8192 bytes further.
template <bool kDepthIsContiguous>
__host__ __device__ constexpr uint64_t describe_part(uint32_t part, int depth) {
  constexpr uint64_t kGroupStride = 1024 / 16, kSwizzle128 = 1;
  constexpr uint32_t kPartStride = 8192 / 16;
  // An address names the block of the cluster above the 18 bits that count. Without those it is
  // what all products of a stage share, and the rest a constant: one addition for each.
  const uint32_t at = (part & 0x3ffff) / 16 + depth * (kDepthIsContiguous ? 2 : 128) / 16;
  return uint64_t{at + (kPartStride << 16)} | kGroupStride << 32 | kSwizzle128 << 62;
}
/// The same of an operand of 16 columns, which lie along rows of 32 bytes, swizzled, one row for
/// each element of the depth.
__host__ __device__ constexpr uint64_t describe_narrow(uint32_t part, int depth) {
  constexpr uint64_t kGroupStride = 256 / 16, kSwizzle32 = 3;
  const uint32_t at = (part & 0x3ffff) / 16 + depth * 32 / 16;
  return uint64_t{at} | kGroupStride << 32 | kSwizzle32 << 62;
}
static_assert(describe_part<false>(1u << 24 | 226 * 1024, 48) ==
              describe_part<false>(226 * 1024, 48));

}  // namespace gralora::ptx
