// Which two steps of the backward pass go in one launch: G with the gradients of the output's
// factors, and dx, or the adapter's part of it, with those of the input's
// (kernels/output_gradients.h, kernels/thin_product.h, kernels/input_gradients.h).
#pragma once

#include "dispatch/select_expand.h"
#include "dispatch/select_project.h"
#include "dispatch/select_thin_product.h"
#include "dispatch/select_weight_gradient.h"

namespace gralora {

/// With so few tokens the start of a launch takes a good part of its time. Measured on an H100:
/// a pass of 16 tokens gains 1 us, one of 128 or more loses by it.
inline constexpr int64_t kMostSharingTokens = 64;

/// Sums that such a launch has beside what it is made for.
constexpr bool is_small(const WeightGradientSelection& sums) {
  return sums.tile == GradientTile::k64x64 && sums.splits == 1;
}

/// Given that both take kernels.
constexpr bool share_launch(int64_t T, const ProjectSelection& project,
                            const WeightGradientSelection& sums) {
  return T <= kMostSharingTokens && project.width_is_contiguous && !is_bulk(project.tile) &&
         is_small(sums);
}
constexpr bool share_launch(int64_t T, const ExpandSelection& expand,
                            const WeightGradientSelection& sums) {
  return T <= kMostSharingTokens && expand.tile == ExpandTile::k64x64 && is_small(sums);
}
constexpr bool share_launch(const ThinProductSelection& product,
                            const WeightGradientSelection& sums) {
  return product.tile == ThinTile::k16x128 && is_small(sums);
}

}  // namespace gralora
