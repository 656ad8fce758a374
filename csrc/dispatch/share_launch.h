// Which two steps of the backward pass go in one launch: G with the gradients of the output's
// factors, and dx with those of the input's (kernels/output_gradients.h,
// kernels/input_gradients.h).
#pragma once

#include "dispatch/select_expand.h"
#include "dispatch/select_project.h"
#include "dispatch/select_weight_gradient.h"

namespace gralora {

/// Given that both take kernels. With few tokens neither fills the chip and their launches count;
/// with many each is bound by its own reading, and takes the tiles that are best for that.
constexpr bool share_launch(const ProjectSelection& project, const WeightGradientSelection& sums) {
  return project.width_is_contiguous && sums.tile == GradientTile::k64x64 && sums.splits == 1;
}
constexpr bool share_launch(const ExpandSelection& expand, const WeightGradientSelection& sums) {
  return expand.tile == ExpandTile::k64x64 && sums.tile == GradientTile::k64x64 && sums.splits == 1;
}

}  // namespace gralora
