// The extended product's launch: tensor maps of its operands and as many clusters as fit at once.
#include <algorithm>

#include "kernels/extended_product.h"
#include "kernels/extended_product_sm90.cuh"
#include "kernels/launch.cuh"
#include "kernels/tensor_map.h"

namespace gralora::extended_product {
namespace {

template <class T, class Tile, bool kDepthIsContiguous>
cudaError_t launch_tile(const ExtendedProductParams& p, cudaStream_t stream) {
  constexpr int kShare = Tile::kColumns / Tile::kCluster;
  Params params{};
  const auto map = [&](CUtensorMap& to, const void* data, int64_t inner, int64_t middle,
                       int64_t middle_stride, int64_t outer, int64_t outer_stride, int box) {
    return make_tensor_map(to, {.data = data,
                                .type = p.type,
                                .inner = inner,
                                .middle = middle,
                                .outer = outer,
                                .middle_stride = middle_stride,
                                .outer_stride = outer_stride,
                                .box_middle = box});
  };
  // A block's columns of the weight: rows of it where the depth is contiguous.
  const cudaError_t statuses[] = {
      map(params.rows, p.rows, p.depth, p.T, p.row_stride, 1, 0, Tile::kRows),
      kDepthIsContiguous ? map(params.weight, p.weight, p.depth, p.width, p.weight_stride, p.blocks,
                               p.weight_stride * p.width, kShare)
                         : map(params.weight, p.weight, p.width, p.depth, p.weight_stride, p.blocks,
                               p.width, Tile::kDepth),
      map(params.latent, p.latent, p.rank, p.T, p.latent_pitch, p.blocks, p.latent_plane,
          Tile::kRows),
      kDepthIsContiguous ? map(params.factor, p.factor, p.width, p.rank, p.factor_pitch, p.blocks,
                               p.factor_block_stride, Tile::kDepth)
                         : map(params.factor, p.factor, p.rank, p.width, p.factor_pitch, p.blocks,
                               p.factor_block_stride, kShare),
      map(params.out, p.out, p.width, p.T, int64_t{p.blocks} * p.width, p.blocks, p.width,
          kBoxRows)};
  for (const cudaError_t status : statuses) {
    if (status != cudaSuccess) return status;
  }
  constexpr int kClusterRows = Tile::kRows * Tile::kCluster;
  constexpr int kGroupRows = 2048;
  params.bias = p.bias;
  params.width = p.width;
  params.rank = p.rank;
  params.base_steps = (p.depth + Tile::kDepth - 1) / Tile::kDepth;
  params.row_tiles = static_cast<int32_t>((p.T + kClusterRows - 1) / kClusterRows);
  params.column_tiles = (p.width + Tile::kColumns - 1) / Tile::kColumns;
  params.blocks = p.blocks;
  params.group = kGroupRows / kClusterRows;
  const int64_t tiles = int64_t{params.row_tiles} * params.column_tiles * p.blocks;
  if (tiles > INT32_MAX || p.processors < Tile::kCluster) return cudaErrorInvalidConfiguration;
  const int64_t clusters = std::min<int64_t>(tiles, p.processors / Tile::kCluster);
  return start_work<ExtendedProduct<T, Tile, kDepthIsContiguous>>(clusters * Tile::kCluster, params,
                                                                  stream, Tile::kCluster);
}

template <class T, bool kDepthIsContiguous>
cudaError_t launch(const ExtendedProductParams& p, cudaStream_t stream) {
  return p.tile == ProductTile::k128x256
             ? launch_tile<T, Tile<256, 4>, kDepthIsContiguous>(p, stream)
             : launch_tile<T, Tile<128, 6>, kDepthIsContiguous>(p, stream);
}

template <class T>
cudaError_t launch(const ExtendedProductParams& p, cudaStream_t stream) {
  return p.depth_is_contiguous ? launch<T, true>(p, stream) : launch<T, false>(p, stream);
}

}  // namespace
}  // namespace gralora::extended_product

namespace gralora {

cudaError_t launch_extended_product(const ExtendedProductParams& params, cudaStream_t stream) {
  if (params.T == 0) return cudaSuccess;
  switch (params.type) {
    case ElementType::kBFloat16:
      return extended_product::launch<__nv_bfloat16>(params, stream);
    case ElementType::kFloat16:
      return extended_product::launch<__half>(params, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace gralora
