// The expansion on CUDA: tensors to plain parameters, dispatch/select_expand's choice, then
// kernels/expand.cu, or the library calls of aten/steps.cpp.
#include "cuda/expand.h"

#include <c10/cuda/CUDAStream.h>

#include "cuda/steps.h"

namespace gralora::cuda {
namespace {

/// Whether the kernel can read a part: `latent` [blocks, T, rank], `factor` [blocks, rank, width].
bool is_addressable(const at::Tensor& latent, const at::Tensor& factor) {
  return has_aligned_rows(latent) && (has_aligned_rows(factor) || has_aligned_rows(factor, 1));
}

ExpandPart describe_part(const at::Tensor& latent, const at::Tensor& factor) {
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

/// Writes the term by the kernel; false where the library is to do it.
bool expand_by_kernel(const Expansion& expansion) {
  const ExpandSelection selection = expansion.select();
  if (!takes_kernel("expand", selection.choice)) return false;
  check_launch("expand", launch_expand(expansion.describe(selection.tile),
                                       c10::cuda::getCurrentCUDAStream()));
  return true;
}

}  // namespace

bool Expansion::is_aligned() const {
  bool aligned = has_aligned_rows(rows) && (bias == nullptr || has_aligned_rows(*bias));
  if (grid_factor.defined()) aligned &= is_addressable(latents.grid, grid_factor);
  if (plain_factor.defined()) {
    aligned &= is_addressable(latents.plain.unsqueeze(0), plain_factor.unsqueeze(0));
  }
  return aligned;
}

ExpandSelection Expansion::select() const {
  const int64_t blocks = count_blocks();
  return select_expand({.T = rows.size(0),
                        .width = rows.size(1) / blocks,
                        .blocks = blocks,
                        .half = is_half(rows),
                        .aligned = is_aligned(),
                        .bias = bias != nullptr,
                        .drops = dropout.rng_state != nullptr});
}

ExpandParams Expansion::describe(ExpandTile tile) const {
  const int64_t blocks = count_blocks();
  const bool has_plain = plain_factor.defined();
  ExpandParams params{};
  if (grid_factor.defined()) params.grid = describe_part(latents.grid, grid_factor);
  if (has_plain) {
    params.plain = describe_part(latents.plain.unsqueeze(0), plain_factor.unsqueeze(0));
  }
  if (bias != nullptr) params.bias = bias->const_data_ptr();
  params.out = rows.mutable_data_ptr();
  params.T = rows.size(0);
  params.blocks = static_cast<int32_t>(blocks);
  params.width = static_cast<int32_t>(rows.size(1) / blocks);
  params.accumulate = !overwrite;
  // Several outer blocks come from the projection kernel or from the exchange of blocks, and each
  // waits for what came before it, the writing of the factors included.
  params.factors_are_ready = latents.projected_here && !has_plain && blocks > 1;
  params.dropout = dropout;
  params.tile = tile;
  params.type = element_type(rows);
  return params;
}

void expand(at::Tensor& rows, const aten::Latents& latents, const at::Tensor& grid_factor,
            const at::Tensor& plain_factor, bool overwrite) {
  if (expand_by_kernel({rows, latents, grid_factor, plain_factor, nullptr, {}, overwrite})) return;
  aten::kLibrarySteps.expand(rows, latents, grid_factor, plain_factor, overwrite);
}

void expand_dropped(at::Tensor& rows, const aten::Latents& latents, const at::Tensor& grid_factor,
                    const at::Tensor& plain_factor, const aten::Dropout& dropout) {
  const DropoutArgument argument(dropout);
  if (expand_by_kernel({rows, latents, grid_factor, plain_factor, nullptr, argument.source})) {
    return;
  }
  aten::kLibrarySteps.expand_dropped(rows, latents, grid_factor, plain_factor, dropout);
}

bool expand_onto_bias(at::Tensor& rows, const aten::Latents& latents, const at::Tensor& grid_factor,
                      const at::Tensor& plain_factor, const at::Tensor& bias) {
  return expand_by_kernel({rows, latents, grid_factor, plain_factor, &bias});
}

}  // namespace gralora::cuda
