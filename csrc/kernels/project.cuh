// latent[q, t, (p, rank)] = scaling * sum_w drop(x)[t, (p, w)] * factor[p, w, (q, rank)]
// for bfloat16 and float16: H from x and A, G from dy and B.
//
// x       [T, inner*width]          read once per slice of columns, unit column stride
// factor  [inner, width, outer*s]   unit stride along the columns (A) or along the width (B)
// latent  [outer, T, inner*s]       the permutation of (p, q) is only the address of the store
//
// For one p this is a tall product [T, width] x [width, outer*s], bound by the read of x: the CTA
// of kernels/block_product.cuh owns the tokens of its tile and a slice of columns of one p, and
// walks along the width. `scaling` enters the sum before it is rounded.
//
// Columns beyond one tile's are slices, and every CTA reads its slice of the factor and its tokens
// of x through L2. Tiles 64 x 32 and 128 x 64 move 1.5 bytes there for each byte of x, when one
// slice holds all columns of a block; the larger has few CTAs, and one wave of them ends unevenly.
// Tile 16 x 32 is for so few tokens that larger ones would leave most of the chip idle; all eight
// warps share it, since the loop over the width is then what takes time.
//
// Two or three CTAs on an SM keep 144 to 180 KiB of reads on their way, several times what covers
// the memory's latency. Shared memory: 48 to 96 KiB. Instantiated by project_bf16.cu and
// project_fp16.cu, called by project.cu.
#pragma once

#include "kernels/block_product.cuh"
#include "kernels/launch.cuh"
#include "kernels/project.h"

namespace gralora::project {

// With few tokens the next kernel's blocks wait beside this one's; with many they would fill the
// processors unevenly, and come when the sums are done.
inline constexpr int kOverlappingTokens = 1024;

template <class T, class Tile, bool kWidthIsContiguous, bool kDrops>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerProcessor)
    project_kernel(const ProjectParams p) {
  extern __shared__ __align__(128) unsigned char ring[];
  wait_for_earlier_kernels();
  if (p.T <= kOverlappingTokens) release_next_kernel();
  // Slices of columns are neighbours, then blocks: they share tokens of x while L2 has them.
  const int columns = p.outer * p.s;
  const auto slices = static_cast<uint32_t>((columns + Tile::kColumns - 1) / Tile::kColumns);
  const int column0 = static_cast<int>(blockIdx.x % slices) * Tile::kColumns;
  const auto block = static_cast<int>(blockIdx.x / slices % static_cast<uint32_t>(p.inner));
  const int64_t token0 =
      static_cast<int64_t>(blockIdx.x / slices / static_cast<uint32_t>(p.inner)) * Tile::kRows;
  const int tokens_left = static_cast<int>(min(p.T - token0, int64_t{Tile::kRows}));

  const Operand<T> x{
      static_cast<const T*>(p.x) + token0 * p.x_row_stride + int64_t{block} * p.width,
      p.x_row_stride, tokens_left};
  const Operand<T> factor{static_cast<const T*>(p.factor) + block * p.factor_block_stride +
                              (kWidthIsContiguous ? column0 * p.factor_pitch : column0),
                          p.factor_pitch, columns - column0};
  Sums<Tile> sums;
  const uint32_t shared = mma::shared_address(ring);
  if constexpr (kDrops) {
    const ChunkDropout dropout(p.dropout, int64_t{p.inner} * p.width, token0,
                               int64_t{block} * p.width);
    accumulate_product<T, Tile, true, kWidthIsContiguous>(sums, shared, x, factor, p.width,
                                                          dropout);
  } else {
    accumulate_product<T, Tile, true, kWidthIsContiguous>(sums, shared, x, factor, p.width);
  }
  release_next_kernel();
  if (!add_over_depth(sums, ring)) return;

  // A thread holds pairs of neighbouring columns; where s is even they are neighbours in memory
  // too.
  const WarpPlace<Tile> place;
  T* latent = static_cast<T*>(p.latent) + token0 * p.latent_pitch + block * p.s;
  const bool pairs = p.s % 2 == 0;
#pragma unroll
  for (int v = 0; v < Tile::kWarpColumns / 8; ++v) {
    const int column = column0 + place.column + v * 8 + place.lane % 4 * 2;
    if (column >= columns) continue;
    const int q = column / p.s;
    T* const to = latent + q * p.latent_plane + (column - q * p.s);
#pragma unroll
    for (int half = 0; half < Tile::kWarpRows / 8; ++half) {
      const int token = place.row + half * 8 + place.lane / 4;
      if (token >= tokens_left) continue;
      const float first = sums.value[half / 2][v][half % 2 * 2] * p.scaling;
      const float second = sums.value[half / 2][v][half % 2 * 2 + 1] * p.scaling;
      if (pairs) {
        *reinterpret_cast<Pair<T>*>(to + token * p.latent_pitch) = {T(first), T(second)};
      } else {
        to[token * p.latent_pitch] = T(first);
        if (column + 1 < columns) {
          const int q1 = (column + 1) / p.s;
          latent[q1 * p.latent_plane + (column + 1 - q1 * p.s) + token * p.latent_pitch] =
              T(second);
        }
      }
    }
  }
}

template <ProjectTile tile, class T, class Tile, bool kWidthIsContiguous>
cudaError_t launch_tile(const ProjectParams& p, cudaStream_t stream) {
  static_assert(Tile::kRows == size_of(tile).tokens && Tile::kColumns == size_of(tile).columns);
  const int64_t slices = (p.outer * p.s + Tile::kColumns - 1) / Tile::kColumns;
  const int64_t blocks = (p.T + Tile::kRows - 1) / Tile::kRows * p.inner * slices;
  if (p.dropout.rng_state != nullptr) {
    return start_kernel<project_kernel<T, Tile, kWidthIsContiguous, true>, Tile::kThreads,
                        Tile::kSharedBytes>(blocks, p, stream);
  }
  return start_kernel<project_kernel<T, Tile, kWidthIsContiguous, false>, Tile::kThreads,
                      Tile::kSharedBytes>(blocks, p, stream);
}

template <class T, bool kWidthIsContiguous>
cudaError_t launch(const ProjectParams& p, cudaStream_t stream) {
  switch (p.tile) {
    case ProjectTile::k16x32:
      return launch_tile<ProjectTile::k16x32, T, Tile<16, 32, 128, 1, 1, 8, 4>, kWidthIsContiguous>(
          p, stream);
    case ProjectTile::k64x32:
      return launch_tile<ProjectTile::k64x32, T, Tile<64, 32, 64, 4, 1, 2, 6>, kWidthIsContiguous>(
          p, stream);
    case ProjectTile::k128x64:
      return launch_tile<ProjectTile::k128x64, T, Tile<128, 64, 64, 4, 2, 1, 4>,
                         kWidthIsContiguous>(p, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_bf16(const ProjectParams& params, cudaStream_t stream);
cudaError_t launch_fp16(const ProjectParams& params, cudaStream_t stream);

}  // namespace gralora::project
