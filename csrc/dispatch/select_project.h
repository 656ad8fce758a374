// Which way a projection (H from x and A, G from dy and B) is computed: a pure function of what the
// call looks like, without torch and without a GPU (gralora._C.select_project).
#pragma once

#include <cstdint>

#include "dispatch/chip.h"
#include "dispatch/choice.h"
#include "kernels/project_tiles.h"

namespace gralora {

/// x [T, inner*width] times factor [inner, width, columns]; strides in elements.
struct ProjectProblem {
  int64_t T, inner, outer, width, columns;
  int64_t x_row_stride;
  int64_t factor_block_stride, factor_width_stride, factor_column_stride;
  uint64_t x_address, factor_address;
  bool half;            // 16-bit operands
  bool aligned_latent;  // its rows start on 16-byte boundaries
  bool drops;           // the input goes through dropout
  Chip chip;
  ForcedPath forced = ForcedPath::kNone;
};

struct ProjectSelection {
  Choice choice;
  ProjectTile tile;
  int splits;                // of the width, by the CTAs of a cluster
  bool width_is_contiguous;  // of the factor
};

ProjectSelection select_project(const ProjectProblem& problem);

}  // namespace gralora
