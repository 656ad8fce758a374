// The adapter's term of dx and the gradients of the input's factors in one launch:
// csrc/cuda/backward.cpp fills and calls it where csrc/dispatch/share_launch.h says so.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/expand.h"
#include "kernels/weight_gradient.h"

namespace gralora {

/// launch_expand(expand) and launch_weight_gradient(sums) side by side, both from G: dx, and dA and
/// dlora_A. Both have the same type, T and dropout; tiles 64 x 64 only, tokens not split.
cudaError_t launch_input_gradients(const ExpandParams& expand, const WeightGradientParams& sums,
                                   cudaStream_t stream);

}  // namespace gralora
