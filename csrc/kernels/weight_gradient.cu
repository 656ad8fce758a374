// The weight gradient's entry: the operands' dtype picks the file that has its kernels; where the
// walk is split, the kernel here adds the splits' sums.
#include "kernels/weight_gradient.cuh"

namespace gralora {
namespace weight_gradient {
namespace {

/// A CTA adds one fragment per thread of one tile, over all splits in their order. `Tile` gives the
/// sums their places; the operands' dtype does not matter any more.
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads) add_splits_kernel(const WeightGradientParams p) {
  wait_for_earlier_kernels();
  release_next_kernel();
  constexpr int kFragments = Tile::kSums / 4;
  constexpr int kFragmentColumns = Tile::kWarpColumns / 8;
  const int64_t tiles = count_tiles<Tile>(p);
  const auto fragment = static_cast<int>(blockIdx.x % kFragments);
  const int64_t tile = blockIdx.x / kFragments;
  const float4* partial = reinterpret_cast<const float4*>(p.workspace) +
                          (tile * kFragments + fragment) * Tile::kThreads + threadIdx.x;
  float4 total = *partial;
  for (int split = 1; split < p.splits; ++split) {
    partial += tiles * kFragments * Tile::kThreads;
    const float4 next = *partial;
    total = {total.x + next.x, total.y + next.y, total.z + next.z, total.w + next.w};
  }
  store_fragment<Tile>(p, place_tile<Tile>(p, tile), fragment / kFragmentColumns,
                       fragment % kFragmentColumns, total);
}

template <GradientTile tile>
cudaError_t add_splits(const WeightGradientParams& p, cudaStream_t stream) {
  using Tile = typename TileOf<tile>::type;
  return start_kernel<add_splits_kernel<Tile>, Tile::kThreads, 0>(
      count_tiles<Tile>(p) * (Tile::kSums / 4), p, stream);
}

cudaError_t add_splits(const WeightGradientParams& p, cudaStream_t stream) {
  switch (p.tile) {
    case GradientTile::k64x64:
      return add_splits<GradientTile::k64x64>(p, stream);
    case GradientTile::k128x32:
      return add_splits<GradientTile::k128x32>(p, stream);
    case GradientTile::k128x64:
      return add_splits<GradientTile::k128x64>(p, stream);
    case GradientTile::k128x128:
      return add_splits<GradientTile::k128x128>(p, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t multiply(const WeightGradientParams& p, cudaStream_t stream) {
  switch (p.type) {
    case ElementType::kBFloat16:
      return launch_bf16(p, stream);
    case ElementType::kFloat16:
      return launch_fp16(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace
}  // namespace weight_gradient

int64_t gradient_workspace(const WeightGradientParams& params) {
  if (params.splits == 1) return 0;
  const GradientTileSize size = size_of(params.tile);
  int64_t tiles = 0;
  for (int which = 0; which < params.count; ++which) {
    const TokenSum& sum = params.sums[which];
    tiles += size.count(sum.blocks, sum.width, sum.rank);
  }
  return tiles * params.splits * size.activations * size.latents;
}

cudaError_t launch_weight_gradient(const WeightGradientParams& params, cudaStream_t stream) {
  const cudaError_t status = weight_gradient::multiply(params, stream);
  if (status != cudaSuccess || params.splits == 1) return status;
  return weight_gradient::add_splits(params, stream);
}

}  // namespace gralora
