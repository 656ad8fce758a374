// The weight difference as a composition of library calls.
#pragma once

#include "aten/blocks.h"
#include "ops/adapter.h"

namespace gralora::aten {

/// target [M, N] (+)= alpha * DW in one pass over target, any strides, block by block: only the
/// products that are not zero. Sums are fp32, or fp64 where the target or a factor is.
void accumulate_delta(at::Tensor& target, const Adapter& adapter, const Sizes& sizes, double alpha,
                      bool overwrite);

}  // namespace gralora::aten
