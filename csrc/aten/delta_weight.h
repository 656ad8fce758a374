// The weight difference as a composition of library calls.
#pragma once

#include "aten/blocks.h"
#include "ops/adapter.h"

namespace gralora::aten {

/// target [M, N] (+)= alpha * DW, by library calls or by a kernel; `op` opens its errors.
using AccumulateDelta = void (*)(const char* op, at::Tensor& target, const Adapter& adapter,
                                 const Sizes& sizes, double alpha, bool overwrite);

/// gralora::delta_weight with the sums left to `accumulate`.
at::Tensor delta_weight(const Adapter& adapter, double scaling, AccumulateDelta accumulate);

/// gralora::merge_ with the sums left to `accumulate`.
void merge_(at::Tensor& weight, const Adapter& adapter, double scaling, double sign,
            AccumulateDelta accumulate);

/// target [M, N] (+)= alpha * DW in one pass over target, any strides, block by block: only the
/// products that are not zero. Sums are fp32, or fp64 where the target or a factor is.
void accumulate_delta(const char* op, at::Tensor& target, const Adapter& adapter,
                      const Sizes& sizes, double alpha, bool overwrite);

}  // namespace gralora::aten
