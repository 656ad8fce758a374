// The weight gradients by bulk copies, of compute capability 9.0a: weight_gradient.cu calls it for
// the tiles that are its own (weight_gradient_tiles.h).
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/weight_gradient.h"

namespace gralora {

/// The sums, or those of every split in the workspace. No dropout; strides are not 0.
cudaError_t launch_weight_gradient_sm90(const WeightGradientParams& params, cudaStream_t stream);

}  // namespace gralora
