// Which way the adapter's term is written into y or dx: a pure function of what the call looks
// like, without torch and without a GPU (gralora._C.select_expand).
#pragma once

#include <cstdint>

#include "dispatch/choice.h"
#include "kernels/expand_tiles.h"

namespace gralora {

/// A result [T, blocks*width].
struct ExpandProblem {
  int64_t T, width, blocks;
  bool half;     // 16-bit operands
  bool aligned;  // rows of the operands and of the result start on 16-byte boundaries
  bool bias;     // is added to the term
  bool drops;    // the term goes through dropout
};

struct ExpandSelection {
  Choice choice;
  ExpandTile tile;
};

ExpandSelection select_expand(const ExpandProblem& problem);

}  // namespace gralora
