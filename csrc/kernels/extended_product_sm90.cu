// The extended product's launch: tensor maps of its operands, the order of its items, and as many
// clusters as fit at once.
#include <algorithm>

#include "kernels/extended_product.h"
#include "kernels/extended_product_sm90.cuh"
#include "kernels/launch.cuh"
#include "kernels/tensor_map.h"

namespace gralora::extended_product {
namespace {

struct CounterParams {
  int32_t* counters;
  int64_t count;
};

/// Counters at zero. A kernel, since the product that follows may be set up while it runs.
struct ClearCounters {
  using Params = CounterParams;
  static constexpr int kThreads = 256, kSharedBytes = 0, kBlocksPerProcessor = 1;
  __device__ static void run(const Params& p, uint32_t, unsigned char*) {
    ptx::wait_for_earlier_kernels();
    ptx::release_next_kernel();
    for (int64_t c = threadIdx.x; c < p.count; c += kThreads) p.counters[c] = 0;
  }
};

template <class Tile>
int64_t count_row_tiles(const ExtendedProductParams& p) {
  constexpr int kClusterRows = Tile::kRows * Tile::kCluster;
  return (p.T + kClusterRows - 1) / kClusterRows;
}

/// The maps of a product's operands and result.
template <class Tile, bool kDepthIsContiguous>
cudaError_t make_maps(Params& params, const ExtendedProductParams& p) {
  constexpr int kShare = Tile::kColumns / Tile::kCluster;
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
  const ProductProjection& projection = p.projection;
  if (projection.factor == nullptr) return cudaSuccess;
  const int32_t depth = p.depth / projection.inner;
  const int32_t columns = p.blocks * (p.rank / projection.inner);
  const cudaError_t status = map(params.projection.rows, p.rows, depth, p.T, p.row_stride,
                                 projection.inner, depth, Tile::kRows);
  if (status != cudaSuccess) return status;
  return kDepthIsContiguous
             ? map(params.projection.factor, projection.factor, columns, depth, projection.pitch,
                   projection.inner, projection.block_stride, Tile::kDepth / Tile::kCluster)
             : map(params.projection.factor, projection.factor, depth, columns, projection.pitch,
                   projection.inner, projection.block_stride,
                   parts_of(columns) * 64 / Tile::kCluster);
}

/// Tokens whose tiles are walked together. Measured on an H100: fewer, where their projections come
/// right before; yet the weight is read once for each group, and a wide one counts.
int choose_group_tokens(const ExtendedProductParams& p, int64_t columns) {
  constexpr int kManyColumns = 32;
  return p.projection.factor != nullptr && columns < kManyColumns ? 1024 : 2048;
}

template <class T, class Tile, bool kDepthIsContiguous>
cudaError_t launch_tile(const ExtendedProductParams& p, cudaStream_t stream) {
  const ProductProjection& asked = p.projection;
  if (asked.factor != nullptr &&
      (p.counters == nullptr || asked.inner < 1 || p.rank % (asked.inner * kChunk) != 0)) {
    return cudaErrorInvalidValue;
  }
  Params params{};
  cudaError_t status = make_maps<Tile, kDepthIsContiguous>(params, p);
  if (status != cudaSuccess) return status;
  params.bias = p.bias;
  params.width = p.width;
  params.rank = p.rank;
  params.base_steps = (p.depth + Tile::kDepth - 1) / Tile::kDepth;
  params.row_tiles = static_cast<int32_t>(count_row_tiles<Tile>(p));
  params.column_tiles = (p.width + Tile::kColumns - 1) / Tile::kColumns;
  params.blocks = p.blocks;
  const int64_t columns = int64_t{params.column_tiles} * p.blocks;
  params.group = choose_group_tokens(p, columns) / (Tile::kRows * Tile::kCluster);
  const int32_t inner = std::max(asked.inner, 1);
  if (params.row_tiles * (columns + inner) > INT32_MAX / 2 || p.processors < Tile::kCluster) {
    return cudaErrorInvalidConfiguration;
  }
  const int32_t places = p.processors / Tile::kCluster;
  if (asked.factor != nullptr) {
    const int32_t s = p.rank / inner;
    const int32_t latent_columns = p.blocks * s, width = p.depth / inner;
    if (latent_columns > Tile::kColumns) return cudaErrorInvalidValue;
    Projection& projection = params.projection;
    projection.latent = asked.latent;
    projection.T = p.T;
    projection.plane = p.latent_plane;
    projection.pitch = p.latent_pitch;
    projection.scaling = asked.scaling;
    projection.inner = inner;
    projection.s = s;
    projection.columns = latent_columns;
    projection.steps = (width + Tile::kDepth - 1) / Tile::kDepth;
  }
  params.order =
      order_product(params.row_tiles, static_cast<int32_t>(columns), params.group, asked.inner);
  if (p.counters != nullptr) {
    params.next_item = p.counters;
    params.projected = p.counters + 1;
    status = start_work<ClearCounters>(1, {p.counters, count_product_counters(p.T)}, stream);
    if (status != cudaSuccess) return status;
  }
  const int64_t clusters = std::min<int64_t>(params.order.items(), places);
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
