// out[t, (i, o)] = sum_d rows[t, d] * weight[d, (i, o)] + what expand.cuh makes of H, B and bias,
// for bfloat16 and float16 and so few tokens that reading the weight is all the work: y from x, W
// transposed, H and B; dx from dy, W, G and A transposed.
//
// A CTA owns 16 tokens and a slice of columns of one block, and walks along the depth
// (block_product.cuh), all eight warps along it together: per byte of the weight there is next to
// nothing to multiply, and what counts is how many bytes are on their way, and that they lie in
// long rows. Three to five stages of 8 or 16 KiB of the weight are under way, of one CTA. Where the
// slices leave multiprocessors idle, the CTAs of a cluster split the depth, and add their sums in
// the order of their ranks.
//
// The walk over the weight begins while the kernel ahead still projects. The steps over the
// latents, which have come when it ends, follow in the same ring, in the first CTA of a cluster.
// Rounded once. Shared memory: 80 to 96 KiB. Instantiated by thin_product_bf16.cu and
// thin_product_fp16.cu, called by thin_product.cu.
#pragma once

#include "kernels/cluster.cuh"
#include "kernels/expand.cuh"
#include "kernels/thin_product.h"
#include "kernels/together.cuh"
#include "kernels/weight_gradient.cuh"

namespace gralora::thin_product {

template <ThinTile tile>
struct TileOf;
template <>
struct TileOf<ThinTile::k16x16> {
  using type = Tile<16, 16, 256, 1, 1, 8, 6>;
};
template <>
struct TileOf<ThinTile::k16x64> {
  using type = Tile<16, 64, 128, 1, 2, 4, 4>;
};
template <>
struct TileOf<ThinTile::k16x128> {
  using type = Tile<16, 128, 64, 1, 4, 2, 5>;
};

/// Puts sums in their places, two neighbouring columns of a token at a time.
template <class T, class Tile>
struct ResultStore {
  T* out;         // of the tile's first token and column
  const T* bias;  // of its first column, or null
  int64_t pitch;
  int tokens, columns;  // columns is even

  __device__ void operator()(int v, int half, float first, float second) const {
    const WarpPlace<Tile> place;
    const int column = place.column + v * 8 + place.lane % 4 * 2;
    const int token = place.row + half * 8 + place.lane / 4;
    if (column >= columns || token >= tokens) return;
    if (bias != nullptr) {
      const Pair<T> pair = *reinterpret_cast<const Pair<T>*>(bias + column);
      first += static_cast<float>(pair.first);
      second += static_cast<float>(pair.second);
    }
    *reinterpret_cast<uint32_t*>(out + token * pitch + column) = round_pair<T>(first, second);
  }
};

/// One CTA's work.
template <class T, ThinTile tile>
struct ThinProduct {
  using Params = ThinProductParams;
  using Tile = typename TileOf<tile>::type;
  static constexpr bool kDepthIsContiguous = tile != ThinTile::k16x128;
  static constexpr int kThreads = Tile::kThreads;
  static constexpr int kSharedBytes = Tile::kSharedBytes;
  static constexpr int kBlocksPerProcessor = 2;

  __device__ static void run(const Params& p, uint32_t index, unsigned char* ring) {
    const ExpandParams& term = p.term;
    if (!term.factors_are_ready) expand::WaitForLatents{}();
    const auto splits = static_cast<uint32_t>(p.splits), place = index / splits;
    const auto tiles = static_cast<uint32_t>((term.width + Tile::kColumns - 1) / Tile::kColumns);
    const int column0 = static_cast<int>(place % tiles) * Tile::kColumns;
    const auto block = static_cast<int64_t>(place / tiles % static_cast<uint32_t>(term.blocks));
    const int64_t token0 =
        static_cast<int64_t>(place / tiles / static_cast<uint32_t>(term.blocks)) * Tile::kRows;
    const int tokens = static_cast<int>(min(term.T - token0, int64_t{Tile::kRows}));
    const int columns = min(term.width - column0, Tile::kColumns);
    const int64_t out_column = block * term.width + column0;

    const int steps = (p.depth + Tile::kDepth - 1) / Tile::kDepth;
    const int split_depth = (steps + p.splits - 1) / p.splits * Tile::kDepth;
    const int depth0 = min(static_cast<int>(index % splits) * split_depth, p.depth);
    const int64_t weight_at = kDepthIsContiguous ? out_column * p.weight_stride + depth0
                                                 : depth0 * p.weight_stride + out_column;
    Sums<Tile> sums;
    const uint32_t shared = ptx::shared_address(ring);
    const Walk<T, Tile, true, kDepthIsContiguous> base(
        {static_cast<const T*>(p.rows) + token0 * p.row_stride + depth0, p.row_stride, tokens},
        {static_cast<const T*>(p.weight) + weight_at, p.weight_stride, columns},
        min(p.depth - depth0, split_depth));
    // The first CTA of a cluster adds the term. A layer's factor has the other axis contiguous than
    // its weight, in either pass; then the steps over it follow without a pause.
    const bool has_term = index % splits == 0;
    const bool follows = term.grid.rank_is_contiguous != kDepthIsContiguous;
    const auto* const latent = static_cast<const T*>(term.grid.latent) +
                               block * term.grid.latent_plane + token0 * term.grid.latent_pitch;
    const auto* const factor = static_cast<const T*>(term.grid.factor) +
                               block * term.grid.factor_block_stride +
                               column0 * (kDepthIsContiguous ? 1 : term.grid.factor_pitch);
    const Walk<T, Tile, true, !kDepthIsContiguous> behind({latent, term.grid.latent_pitch, tokens},
                                                          {factor, term.grid.factor_pitch, columns},
                                                          has_term && follows ? term.grid.rank : 0);
    accumulate_products(sums, shared, base, behind, expand::WaitForLatents{});
    if (has_term) {
      if (!follows) {
        expand::add_part<T>(sums, shared, term.grid, block, token0, column0, tokens, columns);
      }
      expand::add_part<T>(sums, shared, term.plain, 0, token0, out_column, tokens, columns);
    }
    // Nothing is stored before the kernels ahead have read it.
    expand::WaitForLatents{}();

    const bool holds = add_over_depth(sums, ring);
    const int64_t pitch = int64_t{term.blocks} * term.width;
    const T* const bias = static_cast<const T*>(term.bias);
    const ResultStore<T, Tile> store{static_cast<T*>(term.out) + token0 * pitch + out_column,
                                     bias == nullptr ? nullptr : bias + out_column, pitch, tokens,
                                     columns};
    if (p.splits > 1) {
      cluster::add_over_cluster(sums, ring, p.splits, store);
    } else if (holds) {
      for_each_pair(sums, store);
    }
  }
};

template <class Tile>
int64_t count_blocks(const ThinProductParams& p) {
  return (p.term.T + Tile::kRows - 1) / Tile::kRows * p.term.blocks *
         ((p.term.width + Tile::kColumns - 1) / Tile::kColumns) * p.splits;
}

template <class T, ThinTile tile>
cudaError_t start(const ThinProductParams& p, cudaStream_t stream) {
  using Work = ThinProduct<T, tile>;
  constexpr ThinTileSize kSize = size_of(tile);
  static_assert(Work::Tile::kRows == kSize.tokens && Work::Tile::kColumns == kSize.columns &&
                Work::Tile::kDepth == kSize.depth);
  ThinProductParams params = p;
  const cudaError_t status = limit_cluster<Work>(params.splits);
  if (status != cudaSuccess) return status;
  return start_work<Work>(count_blocks<typename Work::Tile>(params), params, stream,
                          static_cast<unsigned>(params.splits));
}

template <class T>
cudaError_t start_beside_sums(const ThinProductParams& p, const WeightGradientParams& sums,
                              cudaStream_t stream) {
  using Work = ThinProduct<T, ThinTile::k16x128>;
  using Second =
      weight_gradient::Gradients<T, typename weight_gradient::TileOf<GradientTile::k64x64>::type,
                                 false>;
  if (p.tile != ThinTile::k16x128) return cudaErrorInvalidValue;
  ThinProductParams params = p;
  const cudaError_t status = limit_cluster<Together<Work, Second>>(params.splits);
  if (status != cudaSuccess) return status;
  WeightGradientParams second = sums;
  const int64_t sum_blocks = weight_gradient::number_tiles<typename Second::Tile>(second);
  return start_together<Work, Second>(count_blocks<typename Work::Tile>(params), params, sum_blocks,
                                      second, stream, static_cast<unsigned>(params.splits));
}

template <class T>
cudaError_t launch(const ThinProductParams& p, const WeightGradientParams* sums,
                   cudaStream_t stream) {
  if (sums != nullptr) return start_beside_sums<T>(p, *sums, stream);
  switch (p.tile) {
    case ThinTile::k16x16:
      return start<T, ThinTile::k16x16>(p, stream);
    case ThinTile::k16x64:
      return start<T, ThinTile::k16x64>(p, stream);
    case ThinTile::k16x128:
      return start<T, ThinTile::k16x128>(p, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t launch_bf16(const ThinProductParams& params, const WeightGradientParams* sums,
                        cudaStream_t stream);
cudaError_t launch_fp16(const ThinProductParams& params, const WeightGradientParams* sums,
                        cudaStream_t stream);

}  // namespace gralora::thin_product
