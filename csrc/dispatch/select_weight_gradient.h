// Which way the factors' gradients are summed: a pure function of what the call looks like, without
// torch and without a GPU (gralora._C.select_weight_gradient).
#pragma once

#include <array>
#include <cstdint>

#include "dispatch/chip.h"
#include "dispatch/choice.h"
#include "kernels/weight_gradient_tiles.h"

namespace gralora {

/// One gradient: per block, the product of [T, width] and [T, rank] over the tokens.
struct GradientShape {
  int64_t blocks = 0, width = 0, rank = 0;
};

/// All gradients of one call; unused places have no blocks.
struct WeightGradientProblem {
  int64_t T;
  std::array<GradientShape, 4> gradients;
  bool half;     // 16-bit operands
  bool aligned;  // rows of the operands start on 16-byte boundaries
  bool narrow;   // no gradient is fp64
  bool repeats;  // an operand has a stride of 0
  bool drops;    // the adapter's input goes through dropout
  Chip chip;
  ForcedPath forced = ForcedPath::kNone;
};

/// Of all gradients.
int64_t largest_rank(const WeightGradientProblem& problem);

struct WeightGradientSelection {
  Choice choice;
  GradientTile tile;
  int splits;  // of the tokens
};

WeightGradientSelection select_weight_gradient(const WeightGradientProblem& problem);

}  // namespace gralora
