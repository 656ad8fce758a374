// The base product of few tokens with the adapter's term, where a kernel does both.
#pragma once

#include "aten/steps.h"

namespace gralora::cuda {

/// Steps::expand_with_base where there are so few tokens that reading the weight is all the work;
/// false, with nothing done, elsewhere.
bool multiply_few_tokens(at::Tensor& rows, const aten::BaseProduct& base,
                         const aten::Latents& latents, const at::Tensor& grid_factor,
                         const at::Tensor& plain_factor, const aten::Dropout& dropout,
                         aten::TokenSums& sums);

}  // namespace gralora::cuda
