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
#include "kernels/bulk_tile.cuh"
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
// Of weight_gradient_sm90.cu.
template <>
struct TileOf<GradientTile::kBulk128x32> {
  using type = BulkTile<2, 32, false, false, 2>;
};
template <>
struct TileOf<GradientTile::kBulk128x64> {
  using type = BulkTile<2, 64, false, false, 2>;
};
template <>
struct TileOf<GradientTile::kBulk128x128> {
  using type = BulkTile<2, 128, false, false, 1>;
};

/// Where a CTA's tile lies.
struct TilePlace {
  int sum;
  int64_t block;
  int width0, rank0;
};

template <class Tile>
__device__ TilePlace place_tile(const WeightGradientParams& p, uint32_t tile) {
  int which = 0;
  while (tile >= static_cast<uint32_t>(p.first_tile[which + 1])) ++which;
  const GradientSum& sum = p.sums[which];
  const auto width_tiles = static_cast<uint32_t>((sum.width + Tile::kRows - 1) / Tile::kRows);
  const auto rank_tiles = static_cast<uint32_t>((sum.rank + Tile::kColumns - 1) / Tile::kColumns);
  const uint32_t index = tile - static_cast<uint32_t>(p.first_tile[which]);
  return {which, static_cast<int64_t>(index / rank_tiles / width_tiles),
          static_cast<int>(index / rank_tiles % width_tiles) * Tile::kRows,
          static_cast<int>(index % rank_tiles) * Tile::kColumns};
}

/// Numbers every tile of the call, for place_tile.
template <class Tile>
int64_t number_tiles(WeightGradientParams& p) {
  int64_t tiles = 0;
  for (int which = 0; which < p.count; ++which) {
    const GradientSum& sum = p.sums[which];
    p.first_tile[which] = static_cast<int32_t>(tiles);
    tiles += GradientTileSize{Tile::kRows, Tile::kColumns}.count(sum.blocks, sum.width, sum.rank);
    if (tiles > INT32_MAX) return tiles;
  }
  p.first_tile[p.count] = static_cast<int32_t>(tiles);
  return tiles;
}

/// A whole tile of sums into the gradient, by way of shared memory: the code is short, which counts
/// in a kernel that runs through it once, and neighbouring threads store neighbouring numbers
/// whichever axis is contiguous.
template <class Tile, class Out>
__device__ void store_tile(const Sums<Tile>& sums, float* shared, const GradientSum& sum,
                           const TilePlace& at, float scale) {
  constexpr int kPitch = Tile::kColumns + 1;  // lets a line of either axis spread over all banks
  static_assert(Tile::kRows * kPitch * 4 <= Tile::kSharedBytes, "the ring holds the tile");
  const WarpPlace<Tile> place;
#pragma unroll
  for (int u = 0; u < Tile::kWarpRows / 16; ++u) {
#pragma unroll
    for (int v = 0; v < Tile::kWarpColumns / 8; ++v) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = place.row + u * 16 + e / 2 * 8 + place.lane / 4;
        const int column = place.column + v * 8 + place.lane % 4 * 2 + e % 2;
        shared[row * kPitch + column] = sums.value[u][v][e] * scale;
      }
    }
  }
  Tile::synchronize();
  const int widths = min(sum.width - at.width0, Tile::kRows);
  const int ranks = min(sum.rank - at.rank0, Tile::kColumns);
  Out* const out = static_cast<Out*>(sum.out) + at.block * sum.width * sum.rank;
  const int line_size = sum.rank_first ? Tile::kRows : Tile::kColumns;
#pragma unroll 4
  for (int e = static_cast<int>(threadIdx.x); e < Tile::kRows * Tile::kColumns;
       e += Tile::kThreads) {
    const int line = e / line_size, inside = e % line_size;
    const int width = sum.rank_first ? inside : line;
    const int rank = sum.rank_first ? line : inside;
    if (width >= widths || rank >= ranks) continue;
    const int64_t to = sum.rank_first ? int64_t{at.rank0 + rank} * sum.width + at.width0 + width
                                      : int64_t{at.width0 + width} * sum.rank + at.rank0 + rank;
    out[to] = Out(shared[width * kPitch + rank]);
  }
}

__device__ inline float scale_of(const WeightGradientParams& p, const GradientSum& sum) {
  return sum.drops ? static_cast<float>(p.dropout.rule.scale) : 1.0f;
}

/// What one CTA adds up: a tile, over a split of the tokens.
template <class Tile>
struct Walk {
  TilePlace at;
  int64_t token0;
  int tokens;

  __device__ Walk(const WeightGradientParams& p, uint32_t index) {
    const auto tiles = static_cast<uint32_t>(p.first_tile[p.count]);
    at = place_tile<Tile>(p, index % tiles);
    const int steps = (p.T + kTokensPerStep - 1) / kTokensPerStep;
    const int split_tokens = (steps + p.splits - 1) / p.splits * kTokensPerStep;
    // The last splits may be left without tokens.
    token0 = min(static_cast<int64_t>(index / tiles) * split_tokens, int64_t{p.T});
    tokens = static_cast<int>(min(p.T - token0, int64_t{split_tokens}));
  }
};

/// A CTA's sums into the gradient, or into the workspace where other CTAs have the other splits.
template <class Tile>
__device__ void store_sums(const Sums<Tile>& sums, unsigned char* shared,
                           const WeightGradientParams& p, const TilePlace& at, uint32_t index) {
  const GradientSum& sum = p.sums[at.sum];
  if (p.splits == 1) {
    float* const tile = reinterpret_cast<float*>(shared);
    const float scale = scale_of(p, sum);
    switch (sum.out_type) {
      case ElementType::kFloat32:
        return store_tile<Tile, float>(sums, tile, sum, at, scale);
      case ElementType::kBFloat16:
        return store_tile<Tile, __nv_bfloat16>(sums, tile, sum, at, scale);
      default:
        return store_tile<Tile, __half>(sums, tile, sum, at, scale);
    }
  }
  float4* const partial = reinterpret_cast<float4*>(p.workspace) +
                          static_cast<int64_t>(index) * (Tile::kSums / 4) * Tile::kThreads +
                          threadIdx.x;
#pragma unroll
  for (int u = 0; u < Tile::kWarpRows / 16; ++u) {
#pragma unroll
    for (int v = 0; v < Tile::kWarpColumns / 8; ++v) {
      const float(&e)[4] = sums.value[u][v];
      partial[(u * (Tile::kWarpColumns / 8) + v) * Tile::kThreads] = {e[0], e[1], e[2], e[3]};
    }
  }
}

/// One CTA's work.
template <class T, class Tile_, bool kDrops>
struct Gradients {
  using Params = WeightGradientParams;
  using Tile = Tile_;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kSharedBytes = Tile::kSharedBytes;
  static constexpr int kBlocksPerProcessor = Tile::kBlocksPerProcessor;

  __device__ static void run(const Params& p, uint32_t index, unsigned char* ring) {
    ptx::wait_for_earlier_kernels();
    if (p.T <= kOverlappingTokens) ptx::release_next_kernel();
    const Walk<Tile> walk(p, index);
    const TilePlace& at = walk.at;
    const GradientSum& sum = p.sums[at.sum];
    // A split without tokens reads nothing, yet its addresses must be the tensor's.
    const int64_t token0 = walk.tokens > 0 ? walk.token0 : 0;
    const Operand<T> activation{static_cast<const T*>(sum.activation) +
                                    at.block * sum.activation_block_stride +
                                    token0 * sum.activation_pitch + at.width0,
                                sum.activation_pitch, sum.width - at.width0};
    const Operand<T> latent{static_cast<const T*>(sum.latent) + at.block * sum.latent_block_stride +
                                token0 * sum.latent_pitch + at.rank0,
                            sum.latent_pitch, sum.rank - at.rank0};
    Sums<Tile> sums;
    const uint32_t shared = ptx::shared_address(ring);
    if (kDrops && sum.drops) {
      if constexpr (kDrops) {
        const ChunkDropout dropout(p.dropout, int64_t{sum.blocks} * sum.width, walk.token0,
                                   at.block * sum.width + at.width0);
        accumulate_product<T, Tile, false, false>(sums, shared, activation, latent, walk.tokens,
                                                  dropout);
      }
    } else {
      accumulate_product<T, Tile, false, false>(sums, shared, activation, latent, walk.tokens);
    }
    ptx::release_next_kernel();
    store_sums<Tile>(sums, ring, p, at, index);
  }
};

template <class T, GradientTile tile>
cudaError_t launch_tile(WeightGradientParams p, cudaStream_t stream) {
  using Tile = typename TileOf<tile>::type;
  static_assert(Tile::kRows == size_of(tile).activations && Tile::kColumns == size_of(tile).latents,
                "the workspace is counted in tiles of this size");
  const int64_t blocks = number_tiles<Tile>(p) * p.splits;
  return p.dropout.rng_state != nullptr ? start_work<Gradients<T, Tile, true>>(blocks, p, stream)
                                        : start_work<Gradients<T, Tile, false>>(blocks, p, stream);
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
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t launch_bf16(const WeightGradientParams& params, cudaStream_t stream);
cudaError_t launch_fp16(const WeightGradientParams& params, cudaStream_t stream);

}  // namespace gralora::weight_gradient
