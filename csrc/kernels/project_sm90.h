// The projection by bulk copies, of compute capability 9.0a: project.cu calls it for the tiles that
// are its own (project_tiles.h).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/project.h"

namespace gralora {

/// As launch_project(). No dropout; the strides of x and of the factor are not 0.
cudaError_t launch_project_sm90(const ProjectParams& params, cudaStream_t stream);

/// Whether the current device runs these kernels.
cudaError_t find_sm90_kernels(bool& run);

}  // namespace gralora
