// The tiles that weight gradients come in: constants, apart from the policy that chooses one
// (dispatch/select_weight_gradient.cpp).
#pragma once

#include <cstdint>

namespace gralora {

/// Columns of the activation x columns of the latent that one CTA owns. The last ones are those of
/// compute capability 9.0a (weight_gradient_sm90.cu).
enum class GradientTile { k64x64, k128x32, k128x64, kBulk128x32, kBulk128x64, kBulk128x128 };

constexpr bool is_bulk(GradientTile tile) { return tile >= GradientTile::kBulk128x32; }

struct GradientTileSize {
  int activations, latents;

  /// CTAs for one walk over `blocks` products of [T, width] and [T, rank].
  constexpr int64_t count(int64_t blocks, int64_t width, int64_t rank) const {
    return blocks * ((width + activations - 1) / activations) * ((rank + latents - 1) / latents);
  }
};

constexpr GradientTileSize size_of(GradientTile tile) {
  switch (tile) {
    case GradientTile::k64x64:
      return {64, 64};
    case GradientTile::k128x32:
    case GradientTile::kBulk128x32:
      return {128, 32};
    case GradientTile::k128x64:
    case GradientTile::kBulk128x64:
      return {128, 64};
    case GradientTile::kBulk128x128:
      break;
  }
  return {128, 128};
}

inline constexpr int kTokensPerStep = 64;  // of a CTA's walk; splits of it are whole steps

}  // namespace gralora
