// G and the gradients of the output's factors in one launch: csrc/cuda/backward.cpp fills and calls
// it where csrc/dispatch/share_launch.h says so.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/project.h"
#include "kernels/weight_gradient.h"

namespace gralora {

/// The latent of dy, and gradients that are sums over dy too (dB, dlora_B) and do not need it:
/// launch_project(project) and launch_weight_gradient(sums) side by side. Neither drops; the
/// factor's width is contiguous; both have the same type and T; the sums come in tiles of 64 x 64,
/// their tokens are not split.
cudaError_t launch_output_gradients(const ProjectParams& project, const WeightGradientParams& sums,
                                    cudaStream_t stream);

}  // namespace gralora
