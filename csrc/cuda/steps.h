// The steps of aten/'s compositions that have CUDA kernels.
#pragma once

#include "aten/steps.h"

namespace gralora::cuda {

void project(at::Tensor& latent, const at::Tensor& rows, const at::Tensor& factor, double scaling);

void round(std::initializer_list<aten::Rounding> roundings);

inline constexpr aten::Steps kKernelSteps{project, round};

}  // namespace gralora::cuda
