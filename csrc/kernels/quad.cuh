// Four neighbouring lanes, which hold eight neighbouring columns of a fragment in pieces of two.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace gralora {

inline constexpr int kQuad = 4;

/// Piece i of lane j becomes piece j of lane i, among four neighbouring lanes.
__device__ inline void transpose_pieces(uint32_t (&piece)[kQuad], int lane) {
#pragma unroll
  for (int step = 1; step < kQuad; step *= 2) {
    const bool upper = (lane & step) != 0;
#pragma unroll
    for (int low = 0; low < kQuad; ++low) {
      if (low & step) continue;
      const uint32_t taken =
          __shfl_xor_sync(0xffffffffu, upper ? piece[low] : piece[low + step], step);
      piece[low] = upper ? taken : piece[low];
      piece[low + step] = upper ? piece[low + step] : taken;
    }
  }
}

}  // namespace gralora
