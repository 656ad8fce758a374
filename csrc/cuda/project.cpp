// The projection on CUDA: tensors to plain parameters, dispatch/select_project's choice, then
// kernels/project.cu, or a library product whose blocks kernels/exchange.cu brings in order.
#include "cuda/project.h"

#include <c10/cuda/CUDAStream.h>

#include "cuda/steps.h"

namespace gralora::cuda {

ProjectSelection Projection::select() const {
  const at::Tensor& rows = input.rows();
  return select_project({.T = rows.size(0),
                         .inner = factor.size(0),
                         .outer = latent.size(0),
                         .width = factor.size(1),
                         .columns = factor.size(2),
                         .x_row_stride = rows.stride(0),
                         .factor_block_stride = factor.stride(0),
                         .factor_width_stride = factor.stride(1),
                         .factor_column_stride = factor.stride(2),
                         .x_address = reinterpret_cast<uint64_t>(rows.const_data_ptr()),
                         .factor_address = reinterpret_cast<uint64_t>(factor.const_data_ptr()),
                         .half = is_half(rows),
                         .aligned_latent = has_aligned_rows(latent),
                         .drops = input.dropout().drops(),
                         .chip = current_chip(),
                         .forced = forced_path()});
}

ProjectParams Projection::describe(const ProjectSelection& selection,
                                   const DropoutArgument& dropout) const {
  const at::Tensor& rows = input.rows();
  const int64_t inner = factor.size(0);
  ProjectParams params{};
  params.x = rows.const_data_ptr();
  params.factor = factor.const_data_ptr();
  params.latent = latent.mutable_data_ptr();
  params.T = rows.size(0);
  params.inner = static_cast<int32_t>(inner);
  params.width = static_cast<int32_t>(factor.size(1));
  params.outer = static_cast<int32_t>(latent.size(0));
  params.s = static_cast<int32_t>(latent.size(2) / inner);
  params.x_row_stride = rows.stride(0);
  params.factor_block_stride = factor.stride(0);
  params.factor_pitch = selection.width_is_contiguous ? factor.stride(2) : factor.stride(1);
  params.latent_plane = latent.stride(0);
  params.latent_pitch = latent.stride(1);
  params.scaling = static_cast<float>(scaling * dropout.scale());
  params.dropout = dropout.source;
  params.type = element_type(rows);
  params.width_is_contiguous = selection.width_is_contiguous;
  params.tile = selection.tile;
  params.splits = selection.splits;
  return params;
}

void project(at::Tensor& latent, const aten::AdapterInput& input, const at::Tensor& factor,
             double scaling) {
  const Projection projection{latent, input, factor, scaling};
  const ProjectSelection selection = projection.select();
  if (!takes_kernel("project", selection.choice)) {
    aten::project_by_product(latent, input, factor, scaling, exchange);
    return;
  }
  const DropoutArgument dropout(input.dropout());
  check_launch("project", launch_project(projection.describe(selection, dropout),
                                         c10::cuda::getCurrentCUDAStream()));
}

}  // namespace gralora::cuda
