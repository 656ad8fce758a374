// The tiles that thin products come in: constants, apart from the policy that takes one
// (dispatch/select_thin_product.cpp).
#pragma once

namespace gralora {

/// Tokens x columns, and the depth of a step: 16 x 16 x 256 and 16 x 64 x 128 for a weight whose
/// depth is contiguous, of which a step reads rows of 512 bytes or 256; 16 x 128 x 64 for one whose
/// columns are, in rows of 256 bytes.
enum class ThinTile { k16x16, k16x64, k16x128 };

struct ThinTileSize {
  int tokens, columns, depth;
};

constexpr ThinTileSize size_of(ThinTile tile) {
  switch (tile) {
    case ThinTile::k16x16:
      return {16, 16, 256};
    case ThinTile::k16x64:
      return {16, 64, 128};
    default:
      return {16, 128, 64};
  }
}

}  // namespace gralora
