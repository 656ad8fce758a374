// The tiles that expansions come in: constants, apart from the policy that chooses one
// (dispatch/select_expand.cpp).
#pragma once

namespace gralora {

/// Tokens x columns of one CTA.
enum class ExpandTile { k64x64, k128x128 };

struct ExpandTileSize {
  int tokens, columns;
};

constexpr ExpandTileSize size_of(ExpandTile tile) {
  return tile == ExpandTile::k64x64 ? ExpandTileSize{64, 64} : ExpandTileSize{128, 128};
}

}  // namespace gralora
