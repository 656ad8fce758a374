// The expansion on CUDA: tensors to plain parameters, dispatch/select_expand's choice, then
// kernels/expand.cu, or the library calls of aten/steps.cpp.
#include "kernels/expand.h"

#include <c10/cuda/CUDAStream.h>

#include "cuda/launch.h"
#include "cuda/steps.h"
#include "dispatch/select_expand.h"

namespace gralora::cuda {
namespace {

/// Whether the kernel can read a part: `latent` [blocks, T, rank], `factor` [blocks, rank, width].
bool is_addressable(const at::Tensor& latent, const at::Tensor& factor) {
  return has_aligned_rows(latent) && (has_aligned_rows(factor) || has_aligned_rows(factor, 1));
}

ExpandPart describe(const at::Tensor& latent, const at::Tensor& factor) {
  ExpandPart part{};
  part.latent = latent.const_data_ptr();
  part.factor = factor.const_data_ptr();
  part.latent_plane = latent.stride(0);
  part.latent_pitch = latent.stride(1);
  part.factor_block_stride = factor.stride(0);
  part.rank = static_cast<int32_t>(factor.size(1));
  part.rank_is_contiguous = !has_aligned_rows(factor);
  part.factor_pitch = part.rank_is_contiguous ? factor.stride(2) : factor.stride(1);
  return part;
}

/// What stands beside the products; nothing of it by default.
struct Beside {
  const at::Tensor* bias = nullptr;
  DropoutSource dropout{};
  bool overwrite = true;
};

/// Writes the term by the kernel; false where the library is to do it.
bool expand_by_kernel(at::Tensor& rows, const aten::Latents& latents, const at::Tensor& grid_factor,
                      const at::Tensor& plain_factor, const Beside& beside) {
  const bool has_grid = grid_factor.defined();
  const bool has_plain = plain_factor.defined();
  const at::Tensor plain_latent = has_plain ? latents.plain.unsqueeze(0) : at::Tensor();
  const at::Tensor plain_block = has_plain ? plain_factor.unsqueeze(0) : at::Tensor();
  const int64_t blocks = has_grid ? grid_factor.size(0) : 1;
  const int64_t width = rows.size(1) / blocks;
  const ExpandSelection selection =
      select_expand({.T = rows.size(0),
                     .width = width,
                     .blocks = blocks,
                     .half = is_half(rows),
                     .aligned = has_aligned_rows(rows) &&
                                (beside.bias == nullptr || has_aligned_rows(*beside.bias)) &&
                                (!has_grid || is_addressable(latents.grid, grid_factor)) &&
                                (!has_plain || is_addressable(plain_latent, plain_block)),
                     .bias = beside.bias != nullptr,
                     .drops = beside.dropout.rng_state != nullptr});
  if (!takes_kernel("expand", selection.choice)) return false;
  ExpandParams params{};
  if (has_grid) params.grid = describe(latents.grid, grid_factor);
  if (has_plain) params.plain = describe(plain_latent, plain_block);
  if (beside.bias != nullptr) params.bias = beside.bias->const_data_ptr();
  params.out = rows.mutable_data_ptr();
  params.T = rows.size(0);
  params.blocks = static_cast<int32_t>(blocks);
  params.width = static_cast<int32_t>(width);
  params.accumulate = !beside.overwrite;
  // Several outer blocks come from the projection kernel or from the exchange of blocks, and each
  // waits for what came before it, the writing of the factors included.
  params.factors_are_ready = latents.projected_here && !has_plain && blocks > 1;
  params.dropout = beside.dropout;
  params.tile = selection.tile;
  params.type = element_type(rows);
  check_launch("expand", launch_expand(params, c10::cuda::getCurrentCUDAStream()));
  return true;
}

}  // namespace

void expand(at::Tensor& rows, const aten::Latents& latents, const at::Tensor& grid_factor,
            const at::Tensor& plain_factor, bool overwrite) {
  if (expand_by_kernel(rows, latents, grid_factor, plain_factor, {.overwrite = overwrite})) return;
  aten::kLibrarySteps.expand(rows, latents, grid_factor, plain_factor, overwrite);
}

void expand_dropped(at::Tensor& rows, const aten::Latents& latents, const at::Tensor& grid_factor,
                    const at::Tensor& plain_factor, const aten::Dropout& dropout) {
  const DropoutArgument argument(dropout);
  if (expand_by_kernel(rows, latents, grid_factor, plain_factor, {.dropout = argument.source})) {
    return;
  }
  aten::kLibrarySteps.expand_dropped(rows, latents, grid_factor, plain_factor, dropout);
}

bool expand_onto_bias(at::Tensor& rows, const aten::Latents& latents, const at::Tensor& grid_factor,
                      const at::Tensor& plain_factor, const at::Tensor& bias) {
  return expand_by_kernel(rows, latents, grid_factor, plain_factor, {.bias = &bias});
}

}  // namespace gralora::cuda
