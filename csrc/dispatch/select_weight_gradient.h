// Which way the factors' gradients are summed: a pure function of what the call looks like, without
// torch and without a GPU (gralora._C.select_weight_gradient).
#pragma once

#include <cstdint>

#include "dispatch/choice.h"

namespace gralora {

/// All gradients of one call.
struct WeightGradientProblem {
  int64_t T;
  int64_t tiles;  // of 64 x 64 numbers, over all gradients
  bool half;      // 16-bit operands
  bool aligned;   // rows of the operands start on 16-byte boundaries
  bool narrow;    // no gradient is fp64
};

Choice select_weight_gradient(const WeightGradientProblem& problem);

}  // namespace gralora
