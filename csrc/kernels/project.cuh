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
#include "kernels/cluster.cuh"
#include "kernels/latent_store.cuh"
#include "kernels/launch.cuh"
#include "kernels/project.h"

namespace gralora::project {

/// One CTA's work. Slices of columns are neighbours, then blocks: they share tokens of x while L2
/// has them. The CTAs of a cluster share a tile and split its width.
template <class T, class Tile_, bool kWidthIsContiguous, bool kDrops>
struct Projection {
  using Params = ProjectParams;
  using Tile = Tile_;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kSharedBytes = Tile::kSharedBytes;
  static constexpr int kBlocksPerProcessor = Tile::kBlocksPerProcessor;

  __device__ static void run(const Params& p, uint32_t index, unsigned char* ring) {
    ptx::wait_for_earlier_kernels();
    if (p.T <= kOverlappingTokens) ptx::release_next_kernel();
    const int columns = p.outer * p.s;
    const auto slices = static_cast<uint32_t>((columns + Tile::kColumns - 1) / Tile::kColumns);
    const auto splits = static_cast<uint32_t>(p.splits);
    const uint32_t tile = index / splits;
    const int column0 = static_cast<int>(tile % slices) * Tile::kColumns;
    const auto block = static_cast<int>(tile / slices % static_cast<uint32_t>(p.inner));
    const int64_t token0 =
        static_cast<int64_t>(tile / slices / static_cast<uint32_t>(p.inner)) * Tile::kRows;
    const int tokens = static_cast<int>(min(p.T - token0, int64_t{Tile::kRows}));
    const int steps = (p.width + Tile::kDepth - 1) / Tile::kDepth;
    const int split_width = (steps + p.splits - 1) / p.splits * Tile::kDepth;
    const int width0 = min(static_cast<int>(index % splits) * split_width, p.width);

    const int64_t x_column = int64_t{block} * p.width + width0;
    const Operand<T> x{static_cast<const T*>(p.x) + token0 * p.x_row_stride + x_column,
                       p.x_row_stride, tokens};
    const int64_t factor_at =
        kWidthIsContiguous ? column0 * p.factor_pitch + width0 : width0 * p.factor_pitch + column0;
    const Operand<T> factor{
        static_cast<const T*>(p.factor) + block * p.factor_block_stride + factor_at, p.factor_pitch,
        columns - column0};
    const int width = min(p.width - width0, split_width);
    Sums<Tile> sums;
    const uint32_t shared = ptx::shared_address(ring);
    if constexpr (kDrops) {
      const ChunkDropout dropout(p.dropout, int64_t{p.inner} * p.width, token0, x_column);
      accumulate_product<T, Tile, true, kWidthIsContiguous>(sums, shared, x, factor, width,
                                                            dropout);
    } else {
      accumulate_product<T, Tile, true, kWidthIsContiguous>(sums, shared, x, factor, width);
    }
    ptx::release_next_kernel();
    const bool holds = add_over_depth(sums, ring);
    const LatentStore<T, Tile> store{
        p, static_cast<T*>(p.latent) + token0 * p.latent_pitch + block * p.s, tokens, column0,
        columns};
    if (p.splits > 1) {
      cluster::add_over_cluster(sums, ring, p.splits, store);
    } else {
      store_latent(sums, holds, ring, store);
    }
  }
};

/// The tiles by their names.
template <ProjectTile tile>
struct TileOf;
template <>
struct TileOf<ProjectTile::k16x32> {
  using type = Tile<16, 32, 128, 1, 1, 8, 4>;
};
template <>
struct TileOf<ProjectTile::k64x32> {
  using type = Tile<64, 32, 64, 4, 1, 2, 6>;
};
template <>
struct TileOf<ProjectTile::k128x64> {
  using type = Tile<128, 64, 64, 4, 2, 1, 4>;
};

template <class Tile>
int64_t count_blocks(const ProjectParams& p) {
  const int64_t slices = (p.outer * p.s + Tile::kColumns - 1) / Tile::kColumns;
  return (p.T + Tile::kRows - 1) / Tile::kRows * p.inner * slices * p.splits;
}

template <class Work>
cudaError_t start(const ProjectParams& p, cudaStream_t stream) {
  ProjectParams params = p;
  // Code compiled for an older chip does not know clusters; it walks the whole width.
  const cudaError_t status = limit_cluster<Work>(params.splits);
  if (status != cudaSuccess) return status;
  return start_work<Work>(count_blocks<typename Work::Tile>(params), params, stream,
                          static_cast<unsigned>(params.splits));
}

template <ProjectTile tile, class T, bool kWidthIsContiguous>
cudaError_t launch_tile(const ProjectParams& p, cudaStream_t stream) {
  using Tile = typename TileOf<tile>::type;
  static_assert(Tile::kRows == size_of(tile).tokens && Tile::kColumns == size_of(tile).columns &&
                Tile::kDepth == size_of(tile).depth);
  return p.dropout.rng_state != nullptr
             ? start<Projection<T, Tile, kWidthIsContiguous, true>>(p, stream)
             : start<Projection<T, Tile, kWidthIsContiguous, false>>(p, stream);
}

template <class T, bool kWidthIsContiguous>
cudaError_t launch(const ProjectParams& p, cudaStream_t stream) {
  switch (p.tile) {
    case ProjectTile::k16x32:
      return launch_tile<ProjectTile::k16x32, T, kWidthIsContiguous>(p, stream);
    case ProjectTile::k64x32:
      return launch_tile<ProjectTile::k64x32, T, kWidthIsContiguous>(p, stream);
    case ProjectTile::k128x64:
      return launch_tile<ProjectTile::k128x64, T, kWidthIsContiguous>(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t launch_bf16(const ProjectParams& params, cudaStream_t stream);
cudaError_t launch_fp16(const ProjectParams& params, cudaStream_t stream);

}  // namespace gralora::project
