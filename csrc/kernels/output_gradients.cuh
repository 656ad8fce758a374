// The launch of kernels/output_gradients.h: project.cuh's work, which walks along the columns of
// dy, and weight_gradient.cuh's, along its tokens, side by side (together.cuh). Instantiated by
// output_gradients_bf16.cu and output_gradients_fp16.cu, called by output_gradients.cu.
#pragma once

#include "kernels/output_gradients.h"
#include "kernels/project.cuh"
#include "kernels/together.cuh"
#include "kernels/weight_gradient.cuh"

namespace gralora::output_gradients {

template <class T, ProjectTile tile>
cudaError_t launch_tile(ProjectParams project, WeightGradientParams sums, cudaStream_t stream) {
  using First = project::Projection<T, typename project::TileOf<tile>::type, true, false>;
  using Second =
      weight_gradient::Gradients<T, typename weight_gradient::TileOf<GradientTile::k64x64>::type,
                                 false>;
  const cudaError_t status = limit_cluster<Together<First, Second>>(project.splits);
  if (status != cudaSuccess) return status;
  const int64_t sum_blocks = weight_gradient::number_tiles<typename Second::Tile>(sums);
  return start_together<First, Second>(project::count_blocks<typename First::Tile>(project),
                                       project, sum_blocks, sums, stream,
                                       static_cast<unsigned>(project.splits));
}

template <class T>
cudaError_t launch(const ProjectParams& project, const WeightGradientParams& sums,
                   cudaStream_t stream) {
  switch (project.tile) {
    case ProjectTile::k16x32:
      return launch_tile<T, ProjectTile::k16x32>(project, sums, stream);
    case ProjectTile::k64x32:
      return launch_tile<T, ProjectTile::k64x32>(project, sums, stream);
    case ProjectTile::k128x64:
      return launch_tile<T, ProjectTile::k128x64>(project, sums, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

cudaError_t launch_bf16(const ProjectParams& project, const WeightGradientParams& sums,
                        cudaStream_t stream);
cudaError_t launch_fp16(const ProjectParams& project, const WeightGradientParams& sums,
                        cudaStream_t stream);

}  // namespace gralora::output_gradients
