// out[t, (i, o)] = sum_q H[i, t, q] * B[i, q, o] + sum_q lora_H[t, q] * lora_B[(i, o), q] (+ out)
// for bfloat16 and float16: the adapter's term of y from H, B, lora_H, lora_B, and that of dx from
// G, A transposed, lora_G, lora_A.
//
// A CTA owns 64 tokens and 64 columns of one block (kernels/block_product.cuh); the depth is the
// rank, so most of its time is the store. Grid part and plain part go into the same sums, which are
// rounded once: together, and with `out` where the term is added to it. Four lanes hold eight
// neighbouring columns of four fragments in pieces; they swap them, so that each has one fragment's
// eight columns whole and reads and writes 16 bytes.
//
// The kernel is for few tokens, where a launch costs more than the bytes; with many a library
// product has the larger tiles (dispatch/select_expand.cpp).
//
// Shared memory: three stages of 8 KiB. Instantiated by expand_bf16.cu and expand_fp16.cu,
// called by expand.cu.
#pragma once

#include "kernels/block_product.cuh"
#include "kernels/expand.h"

namespace gralora::expand {

using ExpandTile = Tile<64, 64, 32, 4, 2, 1, 3>;
inline constexpr int kLanes = 4;  // that hold the columns of a fragment
static_assert(ExpandTile::kWarpColumns == kLanes * 8, "a lane takes one of four fragments whole");

/// Piece i of lane j becomes piece j of lane i, among four neighbouring lanes.
__device__ inline void transpose_pieces(uint32_t (&piece)[kLanes], int lane) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const bool upper = (lane & step) != 0;
#pragma unroll
    for (int low = 0; low < kLanes; ++low) {
      if (low & step) continue;
      const uint32_t taken =
          __shfl_xor_sync(0xffffffffu, upper ? piece[low] : piece[low + step], step);
      piece[low] = upper ? taken : piece[low];
      piece[low + step] = upper ? piece[low + step] : taken;
    }
  }
}

template <class T>
struct alignas(4) Pair {
  T first, second;
};

template <class T>
__device__ uint32_t pack(float first, float second) {
  const Pair<T> pair{T(first), T(second)};
  return *reinterpret_cast<const uint32_t*>(&pair);
}

template <class T, bool kRankIsContiguous>
__device__ void accumulate_part(Sums<ExpandTile>& sums, uint32_t ring, const ExpandPart& part,
                                const T* latent, const T* factor, int tokens, int columns) {
  accumulate_product<T, ExpandTile, true, kRankIsContiguous>(
      sums, ring, {latent, part.latent_pitch, tokens}, {factor, part.factor_pitch, columns},
      part.rank);
}

/// A part's contribution to the tile at token0 and at `column0` of block `block`.
template <class T>
__device__ void add_part(Sums<ExpandTile>& sums, uint32_t ring, const ExpandPart& part,
                         int64_t block, int64_t token0, int64_t column0, int tokens, int columns) {
  if (part.rank == 0) return;
  const T* latent =
      static_cast<const T*>(part.latent) + block * part.latent_plane + token0 * part.latent_pitch;
  const T* factor = static_cast<const T*>(part.factor) + block * part.factor_block_stride;
  if (part.rank_is_contiguous) {
    accumulate_part<T, true>(sums, ring, part, latent, factor + column0 * part.factor_pitch, tokens,
                             columns);
  } else {
    accumulate_part<T, false>(sums, ring, part, latent, factor + column0, tokens, columns);
  }
}

template <class T>
__global__ void __launch_bounds__(ExpandTile::kThreads, 4) expand_kernel(const ExpandParams p) {
  __shared__ __align__(128) unsigned char ring[ExpandTile::kSharedBytes];
  const auto tiles =
      static_cast<uint32_t>((p.width + ExpandTile::kColumns - 1) / ExpandTile::kColumns);
  const int column0 = static_cast<int>(blockIdx.x % tiles) * ExpandTile::kColumns;
  const auto block = static_cast<int64_t>(blockIdx.x / tiles % static_cast<uint32_t>(p.blocks));
  const int64_t token0 =
      static_cast<int64_t>(blockIdx.x / tiles / static_cast<uint32_t>(p.blocks)) *
      ExpandTile::kRows;
  const int tokens = static_cast<int>(min(p.T - token0, int64_t{ExpandTile::kRows}));
  const int columns = p.width - column0;

  Sums<ExpandTile> sums;
  const uint32_t shared = mma::shared_address(ring);
  add_part<T>(sums, shared, p.grid, block, token0, column0, tokens, columns);
  add_part<T>(sums, shared, p.plain, 0, token0, block * p.width + column0, tokens, columns);

  const WarpPlace<ExpandTile> place;
  const int64_t pitch = int64_t{p.blocks} * p.width;
  const int column = place.column + place.lane % kLanes * 8;  // of the fragment this lane takes
  T* const out = static_cast<T*>(p.out) + token0 * pitch + block * p.width + column0 + column;
#pragma unroll
  for (int half = 0; half < ExpandTile::kWarpRows / 8; ++half) {
    const int row = place.row + half * 8 + place.lane / kLanes;
    uint4* const to = reinterpret_cast<uint4*>(out + row * pitch);
    const bool inside = row < tokens && column < columns;
    alignas(16) uint32_t before[kLanes] = {};
    if (p.accumulate) {
      if (inside) *reinterpret_cast<uint4*>(before) = *to;
      transpose_pieces(before, place.lane);
    }
    alignas(16) uint32_t after[kLanes];
#pragma unroll
    for (int v = 0; v < kLanes; ++v) {
      float first = sums.value[half / 2][v][half % 2 * 2];
      float second = sums.value[half / 2][v][half % 2 * 2 + 1];
      if (p.accumulate) {
        const Pair<T> pair = *reinterpret_cast<const Pair<T>*>(&before[v]);
        first += static_cast<float>(pair.first);
        second += static_cast<float>(pair.second);
      }
      after[v] = pack<T>(first, second);
    }
    transpose_pieces(after, place.lane);
    if (inside) *to = *reinterpret_cast<const uint4*>(after);
  }
}

template <class T>
cudaError_t launch(const ExpandParams& p, cudaStream_t stream) {
  const int64_t tiles = (p.width + ExpandTile::kColumns - 1) / ExpandTile::kColumns;
  const int64_t blocks = (p.T + ExpandTile::kRows - 1) / ExpandTile::kRows * p.blocks * tiles;
  expand_kernel<T><<<static_cast<unsigned>(blocks), ExpandTile::kThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t launch_bf16(const ExpandParams& params, cudaStream_t stream);
cudaError_t launch_fp16(const ExpandParams& params, cudaStream_t stream);

}  // namespace gralora::expand
