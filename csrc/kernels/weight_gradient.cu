// The weight gradient's entry: the operands' dtype picks the file that has its kernels; where the
// walk is split, the kernel here adds the splits' sums.
#include "kernels/weight_gradient.cuh"
#include "kernels/weight_gradient_sm90.h"

namespace gralora {
namespace weight_gradient {
namespace {

/// Fragment (u, v) of a thread's sums, into the gradient.
template <class Tile, class Out>
__device__ void store_fragment(const GradientSum& sum, const TilePlace& at, int u, int v,
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
  const GradientSum& sum = p.sums[at.sum];
  const float scale = scale_of(p, sum);
  value = {value.x * scale, value.y * scale, value.z * scale, value.w * scale};
  switch (sum.out_type) {
    case ElementType::kFloat32:
      return store_fragment<Tile, float>(sum, at, u, v, value);
    case ElementType::kBFloat16:
      return store_fragment<Tile, __nv_bfloat16>(sum, at, u, v, value);
    default:
      return store_fragment<Tile, __half>(sum, at, u, v, value);
  }
}

/// A CTA adds one fragment per thread of one tile, over all splits in their order. `Tile` gives the
/// sums their places; the operands' dtype does not matter any more.
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads) add_splits_kernel(const WeightGradientParams p) {
  ptx::wait_for_earlier_kernels();
  ptx::release_next_kernel();
  constexpr int kFragments = Tile::kSums / 4;
  constexpr int kFragmentColumns = Tile::kWarpColumns / 8;
  const int64_t tiles = p.first_tile[p.count];
  const auto fragment = static_cast<int>(blockIdx.x % kFragments);
  const auto tile = static_cast<uint32_t>(blockIdx.x / kFragments);
  const float4* partial = reinterpret_cast<const float4*>(p.workspace) +
                          (int64_t{tile} * kFragments + fragment) * Tile::kThreads + threadIdx.x;
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
cudaError_t add_splits(WeightGradientParams p, cudaStream_t stream) {
  using Tile = typename TileOf<tile>::type;
  const int64_t tiles = number_tiles<Tile>(p);
  return start_kernel<add_splits_kernel<Tile>, Tile::kThreads, 0>(tiles * (Tile::kSums / 4), p,
                                                                  stream);
}

cudaError_t add_splits(const WeightGradientParams& p, cudaStream_t stream) {
  switch (p.tile) {
    case GradientTile::k64x64:
      return add_splits<GradientTile::k64x64>(p, stream);
    case GradientTile::k128x32:
      return add_splits<GradientTile::k128x32>(p, stream);
    case GradientTile::k128x64:
      return add_splits<GradientTile::k128x64>(p, stream);
    case GradientTile::kBulk128x32:
      return add_splits<GradientTile::kBulk128x32>(p, stream);
    case GradientTile::kBulk128x64:
      return add_splits<GradientTile::kBulk128x64>(p, stream);
    case GradientTile::kBulk128x128:
      return add_splits<GradientTile::kBulk128x128>(p, stream);
  }
  return cudaErrorInvalidValue;
}

cudaError_t multiply(const WeightGradientParams& p, cudaStream_t stream) {
  if (is_bulk(p.tile)) return launch_weight_gradient_sm90(p, stream);
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
    const GradientSum& sum = params.sums[which];
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
