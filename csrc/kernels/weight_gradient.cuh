// out[b, c, q] = scale * sum_t drop(activation)[b, t, c] * latent[b, t, q] for bfloat16 and float16
// operands: dA_j from x_j and G_j, dB_i from dy_i and H_i, dlora_A from x and lora_G, dlora_B from
// dy and lora_H, all of one call in one launch.
//
// A CTA owns a tile of one gradient (kernels/block_product.cuh), the activation's columns along the
// tensor core's rows, and walks along the tokens. A tile holds all of a block's latents where they
// fit, so that x and dy are read once. A layer is wide enough to fill the chip with tiles when the
// walk is short; a long one is split, the CTAs leave fp32 sums in a workspace, and a second kernel
// adds them in the order of the splits and rounds once. Split and order depend on the shape and the
// chip alone, so the same inputs give the same bits. The workspace has the layout of a thread's
// sums: what is written and read back is contiguous, whatever the gradient's own layout is.
//
// Both operands lie with the tokens along rows, so both are transposed on their way into fragments.
// Shared memory: 64 to 96 KiB. Instantiated by weight_gradient_bf16.cu and weight_gradient_fp16.cu,
// called by weight_gradient.cu.
#pragma once

#include "kernels/block_product.cuh"
#include "kernels/launch.cuh"
#include "kernels/weight_gradient.h"

namespace gralora::weight_gradient {

template <GradientTile tile>
struct TileOf;
template <>
struct TileOf<GradientTile::k64x64> {
  using type = Tile<64, 64, kTokensPerStep, 4, 2, 1, 4>;
};
template <>
struct TileOf<GradientTile::k128x32> {
  using type = Tile<128, 32, kTokensPerStep, 8, 1, 1, 4>;
};
template <>
struct TileOf<GradientTile::k128x64> {
  using type = Tile<128, 64, kTokensPerStep, 4, 2, 1, 4>;
};
template <>
struct TileOf<GradientTile::k128x128> {
  using type = Tile<128, 128, kTokensPerStep, 2, 4, 1, 3>;
};

/// Where a CTA's tile lies.
struct TilePlace {
  int sum;
  int64_t block;
  int width0, rank0;
};

template <class Tile>
__host__ __device__ int64_t count_tiles(const TokenSum& sum) {
  return int64_t{sum.blocks} * ((sum.width + Tile::kRows - 1) / Tile::kRows) *
         ((sum.rank + Tile::kColumns - 1) / Tile::kColumns);
}

template <class Tile>
__host__ __device__ int64_t count_tiles(const WeightGradientParams& p) {
  int64_t tiles = 0;
  for (int which = 0; which < p.count; ++which) tiles += count_tiles<Tile>(p.sums[which]);
  return tiles;
}

template <class Tile>
__device__ TilePlace place_tile(const WeightGradientParams& p, int64_t tile) {
  int which = 0;
  while (which + 1 < p.count && tile >= count_tiles<Tile>(p.sums[which])) {
    tile -= count_tiles<Tile>(p.sums[which]);
    ++which;
  }
  const TokenSum& sum = p.sums[which];
  const auto width_tiles = static_cast<uint32_t>((sum.width + Tile::kRows - 1) / Tile::kRows);
  const auto rank_tiles = static_cast<uint32_t>((sum.rank + Tile::kColumns - 1) / Tile::kColumns);
  const auto index = static_cast<uint32_t>(tile);
  return {which, static_cast<int64_t>(index / rank_tiles / width_tiles),
          static_cast<int>(index / rank_tiles % width_tiles) * Tile::kRows,
          static_cast<int>(index % rank_tiles) * Tile::kColumns};
}

/// Fragment (u, v) of a thread's sums, into the gradient.
template <class Tile, class Out>
__device__ void store_fragment(const TokenSum& sum, const TilePlace& at, int u, int v,
                               float4 value) {
  const WarpPlace<Tile> place;
  Out* const out = static_cast<Out*>(sum.out) + at.block * sum.width * sum.rank;
  const int rank = at.rank0 + place.column + v * 8 + place.lane % 4 * 2;
  if (rank >= sum.rank) return;
  const bool second = rank + 1 < sum.rank;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int width = at.width0 + place.row + u * 16 + half * 8 + place.lane / 4;
    if (width >= sum.width) continue;
    const Out first_value = Out(half == 0 ? value.x : value.z);
    const Out second_value = Out(half == 0 ? value.y : value.w);
    if (sum.rank_first) {
      Out* const to = out + int64_t{rank} * sum.width + width;
      to[0] = first_value;
      if (second) to[sum.width] = second_value;
    } else {
      Out* const to = out + int64_t{width} * sum.rank + rank;
      if (sum.rank % 2 == 0) {
        *reinterpret_cast<Pair<Out>*>(to) = {first_value, second_value};
      } else {
        to[0] = first_value;
        if (second) to[1] = second_value;
      }
    }
  }
}

template <class Tile>
__device__ void store_fragment(const WeightGradientParams& p, const TilePlace& at, int u, int v,
                               float4 value) {
  const TokenSum& sum = p.sums[at.sum];
  if (sum.drops) {
    const auto scale = static_cast<float>(p.dropout.rule.scale);
    value = {value.x * scale, value.y * scale, value.z * scale, value.w * scale};
  }
  switch (sum.out_type) {
    case ElementType::kFloat32:
      return store_fragment<Tile, float>(sum, at, u, v, value);
    case ElementType::kBFloat16:
      return store_fragment<Tile, __nv_bfloat16>(sum, at, u, v, value);
    default:
      return store_fragment<Tile, __half>(sum, at, u, v, value);
  }
}

template <class T, class Tile, bool kDrops>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerProcessor)
    weight_gradient_kernel(const WeightGradientParams p) {
  extern __shared__ __align__(128) unsigned char ring[];
  wait_for_earlier_kernels();
  release_next_kernel();
  const int64_t tiles = count_tiles<Tile>(p);
  const int64_t tile = static_cast<int64_t>(blockIdx.x) % tiles;
  const auto split = static_cast<int>(static_cast<int64_t>(blockIdx.x) / tiles);
  const TilePlace at = place_tile<Tile>(p, tile);
  const TokenSum& sum = p.sums[at.sum];

  const int steps = (p.T + kTokensPerStep - 1) / kTokensPerStep;
  const int split_tokens = (steps + p.splits - 1) / p.splits * kTokensPerStep;
  const int64_t token0 = int64_t{split} * split_tokens;
  const int tokens = static_cast<int>(max(min(p.T - token0, int64_t{split_tokens}), int64_t{0}));

  const Operand<T> activation{static_cast<const T*>(sum.activation) +
                                  at.block * sum.activation_block_stride +
                                  (tokens > 0 ? token0 : 0) * sum.activation_pitch + at.width0,
                              sum.activation_pitch, sum.width - at.width0};
  const Operand<T> latent{static_cast<const T*>(sum.latent) + at.block * sum.latent_block_stride +
                              (tokens > 0 ? token0 : 0) * sum.latent_pitch + at.rank0,
                          sum.latent_pitch, sum.rank - at.rank0};
  Sums<Tile> sums;
  const uint32_t shared = mma::shared_address(ring);
  if (kDrops && sum.drops) {
    if constexpr (kDrops) {
      const ChunkDropout dropout(p.dropout, int64_t{sum.blocks} * sum.width, token0,
                                 at.block * sum.width + at.width0);
      accumulate_product<T, Tile, false, false>(sums, shared, activation, latent, tokens, dropout);
    }
  } else {
    accumulate_product<T, Tile, false, false>(sums, shared, activation, latent, tokens);
  }

  float4* const partial = reinterpret_cast<float4*>(p.workspace) +
                          static_cast<int64_t>(blockIdx.x) * (Tile::kSums / 4) * Tile::kThreads +
                          threadIdx.x;
#pragma unroll
  for (int u = 0; u < Tile::kWarpRows / 16; ++u) {
#pragma unroll
    for (int v = 0; v < Tile::kWarpColumns / 8; ++v) {
      const float(&e)[4] = sums.value[u][v];
      const float4 value{e[0], e[1], e[2], e[3]};
      if (p.splits > 1) {
        partial[(u * (Tile::kWarpColumns / 8) + v) * Tile::kThreads] = value;
      } else {
        store_fragment<Tile>(p, at, u, v, value);
      }
    }
  }
}

template <class T, GradientTile tile>
cudaError_t launch_tile(const WeightGradientParams& p, cudaStream_t stream) {
  using Tile = typename TileOf<tile>::type;
  const int64_t blocks = count_tiles<Tile>(p) * p.splits;
  if (p.dropout.rng_state != nullptr) {
    return start_kernel<weight_gradient_kernel<T, Tile, true>, Tile::kThreads, Tile::kSharedBytes>(
        blocks, p, stream);
  }
  return start_kernel<weight_gradient_kernel<T, Tile, false>, Tile::kThreads, Tile::kSharedBytes>(
      blocks, p, stream);
}

template <class T>
cudaError_t launch(const WeightGradientParams& p, cudaStream_t stream) {
  switch (p.tile) {
    case GradientTile::k64x64:
      return launch_tile<T, GradientTile::k64x64>(p, stream);
    case GradientTile::k128x32:
      return launch_tile<T, GradientTile::k128x32>(p, stream);
    case GradientTile::k128x64:
      return launch_tile<T, GradientTile::k128x64>(p, stream);
    case GradientTile::k128x128:
      return launch_tile<T, GradientTile::k128x128>(p, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_bf16(const WeightGradientParams& params, cudaStream_t stream);
cudaError_t launch_fp16(const WeightGradientParams& params, cudaStream_t stream);

}  // namespace gralora::weight_gradient
