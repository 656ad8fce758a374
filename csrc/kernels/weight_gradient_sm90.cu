// weight_gradient.cuh's sums with the operands' boxes brought by bulk copies (bulk_product.cuh):
// all of a call in one launch, for bfloat16 and float16 operands.
//
// A CTA owns 128 columns of an activation and up to 128 of the latent, and walks along the tokens
// or a split of them; both operands lie with the tokens along rows. Sums, splits and their order
// are those of weight_gradient.cuh, and so is what is dropped: of one launch's gradients those of
// the adapter's input.
#include "kernels/bulk_product.cuh"
#include "kernels/tensor_map.h"
#include "kernels/weight_gradient.cuh"
#include "kernels/weight_gradient_sm90.h"

namespace gralora::weight_gradient {
namespace {

struct BoxedParams {
  CUtensorMap activation[kMaxGradients], latent[kMaxGradients];
  WeightGradientParams gradients;
};

template <class T, class Tile_>
struct BoxedGradients {
  using Params = BoxedParams;
  using Tile = Tile_;
  static constexpr int kThreads = Tile::kAllThreads;
  static constexpr int kSharedBytes = Tile::kSharedBytes;
  static constexpr int kBlocksPerProcessor = Tile::kBlocksPerProcessor;

  __device__ static void run(const Params& params, uint32_t index, unsigned char* memory) {
    const WeightGradientParams& p = params.gradients;
    const BulkStages<Tile> stages(memory);
    ptx::wait_for_earlier_kernels();
    if (p.T <= kOverlappingTokens) ptx::release_next_kernel();
    const Walk<Tile> walk(p, index);
    const int which = walk.at.sum;
    const auto block = static_cast<int>(walk.at.block);
    const auto token0 = static_cast<int>(walk.token0);
    Sums<Tile> sums;
    const GradientSum& sum = p.sums[which];
    accumulate_boxes<T, Tile>(
        sums, stages, {&params.activation[which], block, walk.at.width0, token0},
        {&params.latent[which], block, walk.at.rank0, token0},
        (walk.tokens + Tile::kDepth - 1) / Tile::kDepth,
        {p.dropout, int64_t{sum.blocks} * sum.width, token0,
         int64_t{block} * sum.width + walk.at.width0, Tile::kDrops && sum.drops});
    if (threadIdx.x >= Tile::kThreads) return;
    ptx::release_next_kernel();
    store_sums<Tile>(sums, memory, p, walk.at, index);
  }
};

template <class T, class Tile>
cudaError_t launch_tile(const WeightGradientParams& p, cudaStream_t stream) {
  static_assert(Tile::kDepth == kTokensPerStep, "splits are whole steps");
  BoxedParams params{.activation = {}, .latent = {}, .gradients = p};
  const int64_t blocks = number_tiles<Tile>(params.gradients) * p.splits;
  // Without tokens nothing is copied, and there may be nothing to point to.
  for (int which = 0; which < p.count && p.T > 0; ++which) {
    const GradientSum& sum = p.sums[which];
    cudaError_t status =
        make_tensor_map(params.activation[which], {.data = sum.activation,
                                                   .type = p.type,
                                                   .inner = sum.width,
                                                   .middle = p.T,
                                                   .outer = sum.blocks,
                                                   .middle_stride = sum.activation_pitch,
                                                   .outer_stride = sum.activation_block_stride,
                                                   .box_middle = Tile::kDepth});
    if (status != cudaSuccess) return status;
    status = make_tensor_map(params.latent[which], {.data = sum.latent,
                                                    .type = p.type,
                                                    .inner = sum.rank,
                                                    .middle = p.T,
                                                    .outer = sum.blocks,
                                                    .middle_stride = sum.latent_pitch,
                                                    .outer_stride = sum.latent_block_stride,
                                                    .box_middle = Tile::kDepth});
    if (status != cudaSuccess) return status;
  }
  return start_work<BoxedGradients<T, Tile>>(blocks, params, stream);
}

/// With warps that drop, or without.
template <class T, GradientTile tile>
cudaError_t launch_either(const WeightGradientParams& p, cudaStream_t stream) {
  using Tile = typename TileOf<tile>::type;
  return p.dropout.rng_state != nullptr ? launch_tile<T, typename Tile::Dropping>(p, stream)
                                        : launch_tile<T, Tile>(p, stream);
}

template <class T>
cudaError_t launch_bulk(const WeightGradientParams& p, cudaStream_t stream) {
  switch (p.tile) {
    case GradientTile::kBulk128x32:
      return launch_either<T, GradientTile::kBulk128x32>(p, stream);
    case GradientTile::kBulk128x64:
      return launch_either<T, GradientTile::kBulk128x64>(p, stream);
    case GradientTile::kBulk128x128:
      return launch_either<T, GradientTile::kBulk128x128>(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace
}  // namespace gralora::weight_gradient

namespace gralora {

cudaError_t launch_weight_gradient_sm90(const WeightGradientParams& params, cudaStream_t stream) {
  switch (params.type) {
    case ElementType::kBFloat16:
      return weight_gradient::launch_bulk<__nv_bfloat16>(params, stream);
    case ElementType::kFloat16:
      return weight_gradient::launch_bulk<__half>(params, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

}  // namespace gralora
