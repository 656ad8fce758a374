// The base product and the adapter's term in one on CUDA: tensors to plain parameters,
// dispatch/select_extended_product's choice, then kernels/extended_product_sm90.cu.
#include "kernels/extended_product.h"

#include <c10/cuda/CUDAStream.h>

#include "cuda/launch.h"
#include "cuda/steps.h"
#include "dispatch/select_extended_product.h"

namespace gralora::cuda {
namespace {

/// Whether a tensor map can describe it.
bool is_mappable(const at::Tensor& tensor, int64_t along = -1) {
  return has_aligned_rows(tensor, along) && !repeats_rows(tensor);
}

ExtendedProductSelection select(const aten::BaseProduct& base, const at::Tensor& rows,
                                const at::Tensor& latent, const at::Tensor& factor, bool by_depth,
                                bool has_plain) {
  const bool aligned = is_mappable(base.input) && is_mappable(rows) && is_mappable(latent) &&
                       (!base.bias || is_mappable(base.bias->unsqueeze(0))) &&
                       (by_depth || is_mappable(base.weight));
  return select_extended_product({.T = rows.size(0),
                                  .depth = base.weight.size(0),
                                  .blocks = factor.size(0),
                                  .width = factor.size(2),
                                  .rank = factor.size(1),
                                  .half = is_half(rows),
                                  .aligned = aligned,
                                  .matched = is_mappable(factor, by_depth ? 2 : 1),
                                  .plain = has_plain,
                                  .drops = false,
                                  .chip = current_chip(),
                                  .forced = forced_path()});
}

}  // namespace

bool expand_with_base(at::Tensor& rows, const aten::BaseProduct& base, const aten::Latents& latents,
                      const at::Tensor& grid_factor, const at::Tensor& plain_factor) {
  if (!grid_factor.defined()) return false;
  // The weight as [depth, columns]: its depth is contiguous where it is a transposed [columns,
  // depth].
  const bool by_depth = is_mappable(base.weight, 0);
  const ExtendedProductSelection selection =
      select(base, rows, latents.grid, grid_factor, by_depth, plain_factor.defined());
  if (!selection.choice.kernel) return false;
  ExtendedProductParams params{};
  params.rows = base.input.const_data_ptr();
  params.weight = base.weight.const_data_ptr();
  params.latent = latents.grid.const_data_ptr();
  params.factor = grid_factor.const_data_ptr();
  params.bias = base.bias ? base.bias->const_data_ptr() : nullptr;
  params.out = rows.mutable_data_ptr();
  params.T = rows.size(0);
  params.depth = static_cast<int32_t>(base.weight.size(0));
  params.blocks = static_cast<int32_t>(grid_factor.size(0));
  params.width = static_cast<int32_t>(grid_factor.size(2));
  params.rank = static_cast<int32_t>(grid_factor.size(1));
  params.row_stride = base.input.stride(0);
  params.weight_stride = base.weight.stride(by_depth ? 1 : 0);
  params.latent_plane = latents.grid.stride(0);
  params.latent_pitch = latents.grid.stride(1);
  params.factor_block_stride = grid_factor.stride(0);
  params.factor_pitch = grid_factor.stride(by_depth ? 1 : 2);
  params.depth_is_contiguous = by_depth;
  params.type = element_type(rows);
  params.tile = selection.tile;
  params.processors = current_chip().processors;
  check_launch("extended_product",
               launch_extended_product(params, c10::cuda::getCurrentCUDAStream()));
  return true;
}

}  // namespace gralora::cuda
