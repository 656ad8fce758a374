// Whether the base product of few tokens takes the adapter's term along on any chip: a pure
// function of what the call looks like, without torch and without a GPU
// (gralora._C.select_thin_product).
#pragma once

#include <cstdint>

#include "dispatch/chip.h"
#include "dispatch/choice.h"
#include "kernels/thin_product_tiles.h"

namespace gralora {

/// [T, depth] times [depth, blocks*width], and the term.
struct ThinProductProblem {
  int64_t T, depth, width, blocks;
  bool by_depth;  // the weight's depth is contiguous, else its width
  bool half;      // 16-bit operands
  bool aligned;   // rows of all operands start on 16-byte boundaries
  bool drops;     // the term goes through dropout
  Chip chip;
  ForcedPath forced = ForcedPath::kNone;
};

/// Otherwise the base product is the library's, onto what the expansion has written.
struct ThinProductSelection {
  Choice choice;
  ThinTile tile;
  int splits;  // of the depth among the CTAs of a cluster
};

ThinProductSelection select_thin_product(const ThinProductProblem& problem);

}  // namespace gralora
