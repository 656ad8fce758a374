// project.cuh's product with the operands' boxes brought by bulk copies (bulk_product.cuh): H from
// x and A, G from dy and B, for bfloat16 and float16.
//
// A CTA owns the tokens of its tile and a slice of columns of one input block, and walks along the
// width. One tile holds all columns up to 256, so that x is read once, save where few tokens are
// given small tiles that fill the chip; the factor comes from L2, 1.5 to 3 bytes of both for each
// byte of x. Two CTAs of 64 tokens on an SM end more evenly than one of 128; from 128 columns on a
// ring that is deep enough needs the memory of the whole SM. Of the widest tile's sums no registers
// are left for warps that drop.
#include "kernels/bulk_product.cuh"
#include "kernels/latent_store.cuh"
#include "kernels/launch.cuh"
#include "kernels/project_sm90.h"
#include "kernels/tensor_map.h"

namespace gralora::project {
namespace {

struct BoxedParams {
  CUtensorMap x, factor;
  ProjectParams project;
};

template <class T, class Tile_>
struct BoxedProjection {
  using Params = BoxedParams;
  using Tile = Tile_;
  static constexpr int kThreads = Tile::kAllThreads;
  static constexpr int kSharedBytes = Tile::kSharedBytes;
  static constexpr int kBlocksPerProcessor = Tile::kBlocksPerProcessor;

  __device__ static void run(const Params& params, uint32_t index, unsigned char* memory) {
    const ProjectParams& p = params.project;
    if (threadIdx.x == 0) {
      ptx::prefetch_map(&params.x);
      ptx::prefetch_map(&params.factor);
    }
    const BulkStages<Tile> stages(memory);
    ptx::wait_for_earlier_kernels();
    if (p.T <= kOverlappingTokens) ptx::release_next_kernel();
    const int columns = p.outer * p.s;
    const auto slices = static_cast<uint32_t>((columns + Tile::kColumns - 1) / Tile::kColumns);
    const int column0 = static_cast<int>(index % slices) * Tile::kColumns;
    const auto block = static_cast<int>(index / slices % static_cast<uint32_t>(p.inner));
    const int token0 =
        static_cast<int>(index / slices / static_cast<uint32_t>(p.inner)) * Tile::kRows;
    const int tokens = static_cast<int>(min(p.T - token0, int64_t{Tile::kRows}));
    Sums<Tile> sums;
    accumulate_boxes<T, Tile>(
        sums, stages, {&params.x, block, token0, 0}, {&params.factor, block, column0, 0},
        (p.width + Tile::kDepth - 1) / Tile::kDepth,
        {p.dropout, int64_t{p.inner} * p.width, token0, int64_t{block} * p.width, Tile::kDrops});
    if (threadIdx.x >= Tile::kThreads) return;
    ptx::release_next_kernel();
    T* const latent = static_cast<T*>(p.latent) + token0 * p.latent_pitch + block * p.s;
    store_latent<T, Tile>(sums, /*holds=*/true, memory, {p, latent, tokens, column0, columns});
  }
};

template <class T, class Tile>
cudaError_t launch_tile(const ProjectParams& p, cudaStream_t stream) {
  const int64_t columns = int64_t{p.outer} * p.s;
  BoxedParams params{.x = {}, .factor = {}, .project = p};
  cudaError_t status = make_tensor_map(params.x, {.data = p.x,
                                                  .type = p.type,
                                                  .inner = p.width,
                                                  .middle = p.T,
                                                  .outer = p.inner,
                                                  .middle_stride = p.x_row_stride,
                                                  .outer_stride = p.width,
                                                  .box_middle = Tile::kRows});
  if (status != cudaSuccess) return status;
  status = make_tensor_map(params.factor,
                           {.data = p.factor,
                            .type = p.type,
                            .inner = Tile::kRightDepth ? p.width : columns,
                            .middle = Tile::kRightDepth ? columns : p.width,
                            .outer = p.inner,
                            .middle_stride = p.factor_pitch,
                            .outer_stride = p.factor_block_stride,
                            .box_middle = Tile::kRightDepth ? Tile::kColumns : Tile::kDepth});
  if (status != cudaSuccess) return status;
  const int64_t slices = (columns + Tile::kColumns - 1) / Tile::kColumns;
  const int64_t blocks = (p.T + Tile::kRows - 1) / Tile::kRows * p.inner * slices;
  return start_work<BoxedProjection<T, Tile>>(blocks, params, stream);
}

/// With warps that drop, or without.
template <class T, class Tile>
cudaError_t launch_either(const ProjectParams& p, cudaStream_t stream) {
  return p.dropout.rng_state != nullptr ? launch_tile<T, typename Tile::Dropping>(p, stream)
                                        : launch_tile<T, Tile>(p, stream);
}

template <class T, bool kWidthIsContiguous>
cudaError_t launch(const ProjectParams& p, cudaStream_t stream) {
  switch (p.tile) {
    case ProjectTile::kBulk64x32:
      return launch_either<T, BulkTile<1, 32, true, kWidthIsContiguous, 2>>(p, stream);
    case ProjectTile::kBulk64x64:
      return launch_either<T, BulkTile<1, 64, true, kWidthIsContiguous, 2>>(p, stream);
    case ProjectTile::kBulk128x128:
      return launch_either<T, BulkTile<2, 128, true, kWidthIsContiguous, 1>>(p, stream);
    case ProjectTile::kBulk128x256:
      if (p.dropout.rng_state != nullptr) return cudaErrorInvalidValue;
      return launch_tile<T, BulkTile<2, 256, true, kWidthIsContiguous, 1>>(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

template <class T>
cudaError_t launch(const ProjectParams& p, cudaStream_t stream) {
  return p.width_is_contiguous ? launch<T, true>(p, stream) : launch<T, false>(p, stream);
}

}  // namespace
}  // namespace gralora::project

namespace gralora {

cudaError_t launch_project_sm90(const ProjectParams& params, cudaStream_t stream) {
  switch (params.type) {
    case ElementType::kBFloat16:
      return project::launch<__nv_bfloat16>(params, stream);
    case ElementType::kFloat16:
      return project::launch<__half>(params, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t find_sm90_kernels(bool& run) {
  using Work = project::BoxedProjection<__nv_bfloat16, BulkTile<1, 64, true, true, 2>>;
  cudaFuncAttributes attributes{};
  const cudaError_t status = cudaFuncGetAttributes(&attributes, work_kernel<Work>);
  // Their parameters may take more than 4 KiB, which drivers of CUDA 12.1 and newer pass on.
  int driver = 0;
  const bool is_new = cudaDriverGetVersion(&driver) == cudaSuccess && driver >= 12010;
  run = status == cudaSuccess && is_new && has_tensor_maps();
  if (status == cudaSuccess) return status;
  (void)cudaGetLastError();
  return status == cudaErrorNoKernelImageForDevice || status == cudaErrorInvalidDeviceFunction
             ? cudaSuccess
             : status;
}

}  // namespace gralora
